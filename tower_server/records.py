"""What the server remembers: one frozen dataclass a kind of record, and how each is written down.

Times are seconds since the epoch. Keys that are missing because an older server wrote the record take their defaults,
and those that only a newer one knows are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self

from tower_server.store.base import Kind, Record

LEGACY_TOKEN = re.compile(r"[\x21-\x7e]{32,512}")
"""What may be the token of a cluster's Go agents; Go Tower's own are 64 hexadecimal digits."""

KUBERNETES = "kubernetes"
KUBESPHERE = "kubesphere"


@dataclass(frozen=True, slots=True)
class _Stored:
    """The shared codec: a record's data is the dataclass as JSON."""

    KIND: ClassVar[Kind]

    def data(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, record: Record) -> Self:
        known = {entry.name for entry in fields(cls)}
        return cls(**{key: value for key, value in record.data.items() if key in known})


@dataclass(frozen=True, slots=True)
class Cluster(_Stored):
    """One member. `ports` maps a service to the host port that callers reach it by."""

    KIND: ClassVar[Kind] = Kind.CLUSTER

    name: str
    uid: str
    created: float
    ports: Mapping[str, int] = field(default_factory=dict)
    serving_names: tuple[str, ...] = ()
    """Further names and addresses for the serving certificate; the member name is always in it."""
    expected_tunnels: int | None = None
    """None: the most that were seen at once in the last day."""
    connected: float | None = None
    """When a tunnel was last known to be up; None: there never was one."""
    legacy_token: str | None = None
    """Hash of the token by which Go agents register; None: they may not."""
    resource_token: str | None = None
    """Hash of the token in the Cluster resource when it was last followed: another one there, or none, is the news."""
    legacy_until: float | None = None
    """Until when they may although the cluster has native agents."""
    resource: str = ""
    """The uid of the Cluster resource that it follows on a Kubernetes host; empty: it was added by hand."""
    service_names: tuple[str, ...] = ()
    """Names and addresses of its Services on a Kubernetes host, for the serving certificate too."""
    federated: bool = False
    """Whether something of the tower's may be in the federation of its host: noted before the first of it is made."""

    @property
    def certificate_names(self) -> tuple[str, ...]:
        """All that its serving certificate carries beside the member name."""
        return tuple(dict.fromkeys((*self.serving_names, *self.service_names)))

    @classmethod
    def read(cls, record: Record) -> Self:
        data = dict(record.data)
        for key in ("serving_names", "service_names"):
            data[key] = tuple(data.get(key, ()))
        return super(Cluster, cls).read(Record(record.kind, record.name, record.version, data))


@dataclass(frozen=True, slots=True)
class Claim(_Stored):
    """A port of the host taken for one service of one cluster. The record's name is the claim: `port-6012`."""

    KIND: ClassVar[Kind] = Kind.CLAIM

    cluster: str
    uid: str
    service: str


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What a key was given for a token, kept until the token expires so that a lost reply can be given again."""

    agent: str
    at: float
    serving_key: str
    identity_chain: str
    serving_chain: str
    identity_expires: float
    serving_expires: float


@dataclass(frozen=True, slots=True)
class Token(_Stored):
    """An enrolment token; of its secret only a hash is kept. `keys` maps the SHA-256 of a public key to its answer."""

    KIND: ClassVar[Kind] = Kind.TOKEN

    id: str
    cluster: str
    uid: str
    secret_hash: str
    created: float
    expires: float
    uses: int
    keys: Mapping[str, Enrolled] = field(default_factory=dict)
    revoked: float | None = None

    @classmethod
    def read(cls, record: Record) -> Self:
        data = dict(record.data)
        data["keys"] = {key: Enrolled(**answer) for key, answer in data.get("keys", {}).items()}
        return super(Token, cls).read(Record(record.kind, record.name, record.version, data))


@dataclass(frozen=True, slots=True)
class Agent(_Stored):
    """One enrolled identity of a member. A handshake is admitted only while its record stands."""

    KIND: ClassVar[Kind] = Kind.AGENT

    name: str
    cluster: str
    uid: str
    key: str
    """SHA-256 of the public key that was certified last, hexadecimal. Nobody is refused by it: an agent that lost the
    answer to its renewal, or whose sibling has renewed, comes back with the key before."""
    created: float
    token: str
    identity_expires: float
    serving_expires: float
    renewed: float | None = None
    revoked: float | None = None
    seen: float | None = None
    version: str = ""
    root: str = ""
    """The beginning of the fingerprint of the root that its certificates are under; empty: of the first one."""
    trust: int = 0
    """The number of the newest trust bundle that it has said it believes."""

    @property
    def record_name(self) -> str:
        return agent_record_name(self.cluster, self.name)

    @property
    def issued(self) -> float:
        """When the newest of its certificates was made."""
        return max(self.created, self.renewed or 0.0)


def agent_record_name(cluster: str, agent: str) -> str:
    """Both are DNS labels, so the dot keeps them apart."""
    return f"{cluster}.{agent}"


def claim_record_name(port: int) -> str:
    return f"port-{port}"
