"""The identities that a verified chain yields, and the cheap checks that are repeated for every use of one.

A verifier runs once for a certificate; whoever keeps the identity asks `check` again before each use, so that expiry
and revocation take hold at once. Times are Unix seconds and come in as arguments.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Final

from certs.errors import Reason, Untrusted
from certs.issuers import REPLICAS, TOWER_SERVERS
from certs.keys import PublicKey
from certs.revocation import RevocationList
from protocol import defaults

RENEWAL_GRACE: Final = defaults.EXPIRED_IDENTITY_GRACE_DAYS * 86400.0


@dataclass(frozen=True, slots=True)
class Validity:
    """When a certificate is good, and the cheap check that a cached identity repeats for every use."""

    serial: int
    not_before: float
    not_after: float

    @property
    def issued_at(self) -> float:
        return self.not_before + defaults.CERTIFICATE_BACKDATE

    @property
    def renew_at(self) -> float:
        """From when on its holder should ask for the next one."""
        return self.issued_at + (self.not_after - self.issued_at) * defaults.RENEW_AT

    def check_time(self, at: float, *, noun: str, grace: float = 0.0, caller: bool = False) -> None:
        if at < self.not_before:
            raise Untrusted(
                Reason.NOT_YET_VALID,
                f"{noun} is valid only from {rfc3339(self.not_before)}, and here it is {rfc3339(at)}",
                "correct the clock that is wrong",
                caller=caller,
            )
        if at > self.not_after + grace:
            raise Untrusted(
                Reason.EXPIRED,
                f"{noun} expired at {rfc3339(self.not_after)}, and here it is {rfc3339(at)}",
                "get a new one"
                if caller
                else "correct the clock if it is wrong; else renew it, or where that is no longer possible, join again",
                caller=caller,
            )


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """A tower server."""

    host: str
    name: str
    validity: Validity
    public_key: PublicKey

    def check(self, at: float) -> None:
        self.validity.check_time(at, noun=TOWER_SERVERS.noun)


@dataclass(frozen=True, slots=True)
class ReplicaIdentity:
    """Another tower server of the same host."""

    host: str
    name: str
    validity: Validity

    def check(self, at: float) -> None:
        self.validity.check_time(at, noun=REPLICAS.noun)


@dataclass(frozen=True, slots=True)
class ServingIdentity:
    """What a cluster shows to its callers."""

    host: str
    cluster: str
    validity: Validity
    public_key: PublicKey


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """An agent of one cluster."""

    host: str
    cluster: str
    agent: str
    validity: Validity
    public_key: PublicKey

    @property
    def serial(self) -> int:
        return self.validity.serial

    @property
    def not_after(self) -> float:
        return self.validity.not_after

    def expired(self, at: float) -> bool:
        """True for an identity that may only renew."""
        return at > self.validity.not_after

    def check(self, at: float, revocations: RevocationList | None, *, allow_expired_for: float = 0.0) -> None:
        """Raises Untrusted when it is no longer good; `allow_expired_for` RENEWAL_GRACE where it may only renew."""
        validity = self.validity
        if revocations is not None and revocations.revokes_agent(
            serial=validity.serial, cluster=self.cluster, agent=self.agent, issued_at=validity.issued_at
        ):
            raise Untrusted(
                Reason.REVOKED,
                f"the identity of agent {self.agent} of cluster {self.cluster} was revoked",
                "if that was not intended, make a new token and join again",
            )
        validity.check_time(at, noun=f"the identity of agent {self.agent} of {self.cluster}", grace=allow_expired_for)


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """A caller: the user and groups that its certificate names."""

    host: str
    user: str
    groups: tuple[str, ...]
    validity: Validity

    @property
    def serial(self) -> int:
        return self.validity.serial

    @property
    def not_before(self) -> float:
        return self.validity.not_before

    @property
    def not_after(self) -> float:
        return self.validity.not_after

    def check(self, at: float, revocations: RevocationList | None) -> None:
        """Raises Untrusted when it is no longer good: two comparisons and two lookups, made for every request."""
        validity = self.validity
        if revocations is not None and revocations.revokes_user(
            serial=validity.serial, user=self.user, issued_at=validity.issued_at
        ):
            raise Untrusted(
                Reason.REVOKED,
                f"the certificate of {self.user} was revoked",
                "`towerctl credential CLUSTER --refresh` where the kubeconfig names that plugin; else ask the host's "
                "operator for a new one",
                caller=True,
            )
        validity.check_time(at, noun=f"the certificate of {self.user}", caller=True)


def rfc3339(at: float) -> str:
    return dt.datetime.fromtimestamp(int(at), dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
