"""How the server itself serves callers of one cluster: by the gateway that a native agent runs in the member.

The code and the rules are the same: a serving certificate for that cluster alone, certificate callers impersonated by
the agent's credential, bearer callers passed on over connections without it. The credential used is the latest of those
that connected agents have sent; agents share nothing else.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from certs.ca import Authority
from certs.keys import generate_key, key_to_pem
from certs.peers import ClientIdentity
from certs.pemfile import in_memory
from certs.tls import callers_context
from daemon.log import get_logger
from gateway.audit import RequestRecord
from gateway.policy import Policy
from gateway.proxy import Gateway
from gateway.tls import Apiserver, upstream_context
from gateway.upstream import Upstreams
from protocol import defaults
from tower_server.legacy.registration import Credential, Target
from tower_server.revocations import Revocations

UNREACHABLE: Final = frozenset({"TWR301", "TWR303"})
Connect = Callable[[Callable[[], Any]], Awaitable[tuple[Any, Any]]]

log = get_logger(__name__)
audit = get_logger("audit")


class Certificates:
    """The serving certificate of one cluster, its key made here, renewed at two thirds of its life and for other
    names: on a Kubernetes host callers come by those of its Services."""

    def __init__(self, authority: Authority, cluster: str, names: Callable[[], tuple[str, ...]]) -> None:
        self._authority = authority
        self.cluster = cluster
        self._names = names
        self._carried: tuple[str, ...] = ()
        self._key = generate_key()
        self._renew_at = 0.0
        self._bundle = authority.bundle
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        now, names = time.time(), self._names()
        stands = names == self._carried and self._bundle is self._authority.bundle
        if self._context is None or now >= self._renew_at or not stands:
            self._bundle, self._carried = self._authority.bundle, names
            issued = self._authority.issue_serving(self.cluster, names, public_key=self._key.public_key(), at=now)
            self._renew_at = now + (issued.not_after - now) * defaults.RENEW_AT
            self._context = callers_context(
                self._authority.bundle, chain_pem=issued.chain_pem, key_pem=key_to_pem(self._key)
            )
        return self._context


@dataclass(frozen=True, slots=True)
class Shown:
    """A credential as OpenSSL has it, for callers that are impersonated and for those that bring a token: made once,
    however many tunnels show it. ssl.SSLError or ValueError when OpenSSL cannot use it."""

    credential: Credential
    own: ssl.SSLContext
    none: ssl.SSLContext

    @classmethod
    def of(cls, target: Target, credential: Credential) -> Shown:
        apiserver = _apiserver(target, credential)
        none = upstream_context(apiserver)
        if not credential.certificate_pem:
            return cls(credential, none, none)
        with in_memory(credential.certificate_pem) as chain, in_memory(credential.key_pem) as key:
            return cls(credential, upstream_context(apiserver, certificate_file=chain, key_file=key), none)


def make_gateway(
    *,
    authority: Authority,
    revocations: Revocations,
    certificates: Certificates,
    target: Target,
    shown: Shown,
    connect: Connect,
    unreachable: Callable[[], object],
) -> Gateway:
    """The gateway of one agent's tunnel; start it, and close it with the tunnel."""
    upstreams = Upstreams(_apiserver(target, shown.credential), connect=connect)
    use_credential(upstreams, shown)
    return Gateway(
        context=certificates.context(),
        upstreams=upstreams,
        policy=Policy.default(authority.host),
        verify_client=lambda chain: authority.bundle.verify_client(chain, time.time(), revocations=revocations.current),
        check_client=lambda who: cast("ClientIdentity", who).check(time.time(), revocations.current),
        observer=Audit(authority.host, unreachable),
        cluster=certificates.cluster,
    )


def use_credential(upstreams: Upstreams, shown: Shown) -> None:
    """From the next request on; connections that show another one are dropped once they are free."""
    token = shown.credential.token
    upstreams.impersonation.renew(shown.own, authorization=(lambda: b"Bearer " + token) if token else None)
    upstreams.bearer.renew(shown.none)


def _apiserver(target: Target, credential: Credential) -> Apiserver:
    return Apiserver(target.bare_host, target.port, "", credential.ca_pem)


class Audit:
    """One line a request, as an agent writes it; `unreachable` is told of those that found no apiserver."""

    def __init__(self, host: str, unreachable: Callable[[], object]) -> None:
        self._host: Final = host
        self._unreachable = unreachable

    def request(self, record: RequestRecord) -> None:
        if record.fault in UNREACHABLE:
            self._unreachable()
        audit.info(
            "request",
            host=self._host,
            audit_id=record.audit_id,
            connection=record.connection_id,
            caller=record.caller_address,
            who=record.who,
            verb=record.verb,
            method=record.method,
            path=record.path,
            code=record.code,
            bytes_in=record.bytes_in,
            bytes_out=record.bytes_out,
            seconds=round(record.duration, 4),
            **({"fault": record.fault} if record.fault else {}),
        )

    def tls_failed(self, failure: str, text: str, caller_address: str, connection_id: str) -> None:
        log.info(
            "caller-tls-failed",
            fault="TWR413",
            failure=failure,
            text=text,
            caller=caller_address,
            connection=connection_id,
        )
