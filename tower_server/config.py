"""What the server's configuration file, environment and flags may say.

With none of it a server runs on one machine, for agents of the same machine; `public_url` is what a first real member
needs. A server that does not run as root keeps its state under the user's own directories, and says so at its start.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from certs.errors import IssueRefused
from certs.names import is_label, parse_host
from daemon.config import Duration, Log, Section
from daemon.liveness import Liveness
from daemon.memory import Memory
from daemon.units import Listener, split_address
from protocol import defaults

SCHEMES: Final = {"wss": 443, "https": 443, "ws": 80, "http": 80}
_RANGE: Final = re.compile(r"\s*(\d{1,5})\s*-\s*(\d{1,5})\s*")
CONFIG_VARIABLE: Final = "TOWER_CONFIG"


def _port_range(value: Any) -> Any:
    """ "6000-7000" as a pair."""
    if isinstance(value, str):
        found = _RANGE.fullmatch(value)
        if found is None:
            raise ValueError('a range of ports is written FIRST-LAST, such as "6000-7000"')
        return int(found[1]), int(found[2])
    if not isinstance(value, (list, tuple)):
        raise ValueError('a range of ports is written FIRST-LAST, such as "6000-7000"')
    return value


class Tls(Section):
    """The certificate of the tunnel port, where it is not to be one of the tower's own CA."""

    cert: Path
    """The chain as PEM, leaf first."""
    key: Path


class Ports(Section):
    """The ports that callers reach members by."""

    range: Annotated[tuple[int, int], BeforeValidator(_port_range)] = defaults.PORT_RANGE
    """Both ends belong to it; the ports of the second service lie `kubesphere_offset` above."""
    kubesphere_offset: int = defaults.KUBESPHERE_PORT_OFFSET
    bind: str = ""
    """The address that they listen on; all addresses when empty. Callers are authenticated wherever they come from."""

    @field_validator("range")
    @classmethod
    def _a_range(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= value[0] <= value[1] <= 65535:
            raise ValueError("a range of ports goes from a lower to a higher port, both within 1 to 65535")
        return value

    @model_validator(mode="after")
    def _apart(self) -> Ports:
        size = self.range[1] - self.range[0]
        if not size < self.kubesphere_offset <= 65535 - self.range[1]:
            raise ValueError("kubesphere_offset must lift the range to ports that are not its own and not above 65535")
        return self


class Callers(Section):
    """What whoever connects to a cluster's port meets."""

    address: str | None = None
    """The host name that kubeconfigs name; that of `public_url` when left out."""
    cluster_address: str = ""
    """This server's address in EndpointSlices of a Kubernetes host; that of its way to the apiserver when left out."""
    hold: Duration = defaults.HOLD
    """How long a caller is kept waiting for a tunnel that was up a moment ago."""
    hold_waiters: int = Field(default=defaults.HOLD_WAITERS, ge=0, le=65536)
    new_per_network: int = Field(default=defaults.NEW_CALLERS, ge=1)
    """Connections of one network to one cluster's port, of those that opened in the last ten seconds."""
    no_tunnel_answer: Literal["status", "close"] = "status"
    """`status`: a 503 that says why, for which the server ends the caller's TLS; `close`: nothing but the end."""

    @field_validator("cluster_address")
    @classmethod
    def _for_a_slice(cls, value: str) -> str:
        if not value:
            return value
        parsed = ipaddress.ip_address(value)
        if parsed.is_loopback or parsed.is_link_local:
            raise ValueError("an EndpointSlice holds no loopback and no link-local address")
        return str(parsed)


class Admission(Section):
    """How fast agents are let in: a token bucket over handshakes, and one over enrolments."""

    handshakes_per_second: float = Field(default=defaults.HANDSHAKE_RATE, gt=0)
    handshake_burst: int = Field(default=defaults.HANDSHAKE_BURST, ge=1)
    enrolments_per_second: float = Field(default=defaults.ENROLMENT_RATE, gt=0)
    enrolment_burst: int = Field(default=defaults.ENROLMENT_BURST, ge=1)


class EnrolmentTokens(Section):
    """Enrolment tokens, where a call does not say otherwise."""

    lifetime: Duration = defaults.TOKEN_LIFETIME
    uses: int = Field(default=defaults.TOKEN_USES, ge=1, le=1000)


class StoreSection(Section):
    """Where the server keeps its records."""

    SHORT = "kind"
    kind: Literal["sqlite", "kubernetes"] = "sqlite"
    """`sqlite`: a file in `state_dir`, for one server; `kubernetes`: objects of a host cluster, for one or several."""
    namespace: str = defaults.STORE_NAMESPACE
    """Of the Secrets and Leases that hold records."""
    kubeconfig: Path | None = None
    """The host cluster's kubeconfig; without one the pod's ServiceAccount is used."""
    context: str | None = None

    @field_validator("namespace")
    @classmethod
    def _a_label(cls, value: str) -> str:
        if not is_label(value):
            raise ValueError("a namespace is a DNS label: lower-case letters, digits and hyphens")
        return value


class Replica(Section):
    """This server among others of its host, which share a Kubernetes store."""

    name: str = ""
    """Its name among them, another for each; the machine's (a pod's own) when left out."""
    listen: Listener = f":{defaults.REPLICA_PORT}"
    """Where the others reach it; they prove who they are."""
    address: str = ""
    """The host name or address that they use; `callers.cluster_address`, or that of the way to the apiserver, when left
    out."""

    @field_validator("name")
    @classmethod
    def _a_label(cls, value: str) -> str:
        if value and not is_label(value):
            raise ValueError("a replica's name is a DNS label: lower-case letters, digits and hyphens")
        return value


class Operators(Section):
    """Operators who come by the host's apiserver (`towerctl --context`)."""

    listen: str = ""
    """A loopback address of the pod, such as 127.0.0.1:8445; off when left out. Whoever comes has to log in."""

    @field_validator("listen", mode="before")
    @classmethod
    def _on_loopback(cls, value: object) -> object:
        if value == "":
            return value
        host, _ = split_address(value)
        if host != "localhost" and not (host and ipaddress.ip_address(host).is_loopback):
            raise ValueError(
                "must be a loopback address, such as 127.0.0.1:8445: it is plain HTTP behind a port-forward"
            )
        return value


class KubesphereV1(Section):
    """The port of the dialect `kubesphere-v1`, for Go Tower's agents. Off unless enabled."""

    enabled: bool = False
    listen: Listener = f":{defaults.LEGACY_PORT}"
    """Plain, as Go agents expect it, unless `tls` is set."""
    tls: Tls | None = None


class ServerConfig(Section):
    """The server's configuration."""

    host: str = ""
    """This tower's name in every certificate, fixed by its first start; the machine's name when left out."""
    public_url: str | None = None
    """How agents reach the tunnel port, such as wss://tower.example.com:8443. Join commands need it."""
    listen: Listener = f":{defaults.TUNNEL_PORT}"
    """The tunnel port."""
    plain_http: bool = False
    """Serves the tunnel port without TLS, for a load balancer that ends it; callers' TLS is not touched by this."""
    tls: Tls | None = None
    state_dir: Path = Path(defaults.STATE_DIR)
    """Holds the store (0600), in it the tower CA."""
    store: StoreSection = StoreSection()
    admin_socket: Path = Path(defaults.ADMIN_SOCKET)
    health_address: Listener = defaults.SERVER_HEALTH_ADDRESS
    ports: Ports = Ports()
    callers: Callers = Callers()
    drain: Duration = defaults.DRAIN
    """How long a server that is told to stop lets streams end; watches end at once, cleanly."""
    admission: Admission = Admission()
    enrolment: EnrolmentTokens = EnrolmentTokens()
    liveness: Liveness = Liveness()
    memory: Memory = Memory()
    busy_poll: bool = True
    """Polls for the next message for a moment after each one, where they come thousands a second, before it sleeps."""
    replica: Replica = Replica()
    operators: Operators = Operators()
    kubesphere_v1: KubesphereV1 = KubesphereV1()
    kubesphere_config: str = ""
    """NAMESPACE/NAME of the ConfigMap of this host's KubeSphere, whose `jwtSecret` members must have too."""
    log: Log = Log()

    @field_validator("host")
    @classmethod
    def _a_label(cls, value: str) -> str:
        if value and not is_label(value):
            raise ValueError("a host's name is a DNS label: lower-case letters, digits and hyphens")
        return value

    @field_validator("kubesphere_config")
    @classmethod
    def _a_config_map(cls, value: str) -> str:
        namespace, slash, name = value.partition("/")
        if value and not (slash and is_label(namespace) and all(map(is_label, name.split(".")))):
            raise ValueError("a ConfigMap is named NAMESPACE/NAME, such as kubesphere-system/kubesphere-config")
        return value

    @model_validator(mode="after")
    def _a_host_has_it(self) -> ServerConfig:
        if self.kubesphere_config and self.store.kind != "kubernetes":
            raise ValueError("kubesphere_config needs a Kubernetes store: it is an object of the host's apiserver")
        return self

    @field_validator("public_url")
    @classmethod
    def _a_url(cls, value: str | None) -> str | None:
        return None if value is None else normal_url(value)

    @model_validator(mode="after")
    def _somebody_says_who_asks(self) -> ServerConfig:
        if self.operators.listen and self.store.kind != "kubernetes":
            raise ValueError("operators.listen needs a Kubernetes store: its apiserver is what authenticates operators")
        return self

    @field_validator("admin_socket")
    @classmethod
    def _fits(cls, value: Path, _info: ValidationInfo) -> Path:
        if len(os.fsencode(value)) > 107:
            raise ValueError("the path of a Unix socket has at most 107 bytes")
        return value


def normal_url(text: str) -> str:
    """`wss://HOST[:PORT]` for what may be written with https:// and a trailing slash; raises ValueError."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{text!r} is not a URL: {error}") from None
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise ValueError("must be a URL such as wss://tower.example.com:8443")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise ValueError("must end after host and port: the paths below are fixed")
    try:
        named = parse_host(parts.hostname.removesuffix(".").replace("_", "-"))  # resolvers take both
    except IssueRefused as error:
        raise ValueError(f"names a host that no agent can dial: {error}") from None
    if not text.isprintable() or str(named).startswith("*"):
        raise ValueError("must name one host, as agents are to dial it")
    scheme = "wss" if parts.scheme in ("wss", "https") else "ws"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{scheme}://{host}" + (f":{port}" if port is not None and port != SCHEMES[scheme] else "")


def url_host(url: str) -> str:
    """The host of a URL that `normal_url` made."""
    return urlsplit(url).hostname or ""


def machine_name() -> str:
    """The first label of this machine's name, as far as it may stand in a certificate."""
    label = re.sub(r"[^a-z0-9-]", "-", socket.gethostname().split(".")[0].lower()).strip("-")[:63].strip("-")
    return label or "tower"


def user_places(environ: dict[str, str], uid: int) -> dict[str, str]:
    """Where a server that is not root keeps its state and socket, as flags for the keys that nobody set."""
    if uid == 0:
        return {}
    home = environ.get("HOME") or f"/tmp/tower-{uid}"  # noqa: S108 - whose it is, is checked
    state = Path(environ.get("XDG_STATE_HOME") or f"{home}/.local/state") / "tower"
    runtime = Path(environ["XDG_RUNTIME_DIR"]) / "tower" if environ.get("XDG_RUNTIME_DIR") else state
    return {"state_dir": str(state), "admin_socket": str(runtime / "admin.sock")}
