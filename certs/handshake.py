"""Verifiers for the handshake of `tower.v1`: a chain, a transcript and its signature in, an identity out.

The clock, the bundle and the revocations come in as functions or are read anew for each handshake, so that what changes
while a process runs takes hold at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from certs.errors import Reason, Untrusted
from certs.keys import PublicKey, verify_signature
from certs.peers import AgentIdentity, ServerIdentity
from certs.revocation import RevocationList
from certs.verify import TrustBundle
from protocol.constants import Code
from protocol.errors import HandshakeRejected

Clock = Callable[[], float]

_CODES: Final = {
    Reason.EXPIRED: Code.EXPIRED,
    Reason.REVOKED: Code.REVOKED,
    Reason.BAD_SIGNATURE: Code.BAD_SIGNATURE,
}


def agent_verifier(
    bundle: Callable[[], TrustBundle],
    clock: Clock,
    revoked: Callable[[], RevocationList | None],
    *,
    allow_expired_for: float = 0.0,
) -> Callable[[Sequence[bytes], bytes, bytes], AgentIdentity]:
    """For the server's end. HandshakeRejected with EXPIRED, REVOKED, BAD_SIGNATURE or UNTRUSTED.

    With `allow_expired_for=RENEWAL_GRACE` the caller must look at `identity.expired(now)`, and let such an agent renew
    and do nothing else.
    """

    def verify(chain: Sequence[bytes], transcript: bytes, signature: bytes) -> AgentIdentity:
        identity = None
        try:
            identity = bundle().identify_agent(chain)
            # First, so that EXPIRED and REVOKED are said of who holds the key, not of who has seen the certificate.
            _check_signature(identity.public_key, transcript, signature)
            identity.check(clock(), revoked(), allow_expired_for=allow_expired_for)
        except Untrusted as exc:
            proven = None if identity is None or exc.reason is Reason.BAD_SIGNATURE else identity.cluster
            raise _rejected(exc, cluster=proven) from exc
        return identity

    return verify


def server_verifier(bundle: TrustBundle, clock: Clock) -> Callable[[Sequence[bytes], bytes, bytes], ServerIdentity]:
    """For the agent's end: the server must be a tower server of the bundle's host."""

    def verify(chain: Sequence[bytes], transcript: bytes, signature: bytes) -> ServerIdentity:
        try:
            identity = bundle.verify_server(chain, clock())
            _check_signature(identity.public_key, transcript, signature)
        except Untrusted as exc:
            raise _rejected(exc) from exc
        return identity

    return verify


def _check_signature(public_key: PublicKey, transcript: bytes, signature: bytes) -> None:
    if not verify_signature(public_key, transcript, signature):
        raise Untrusted(Reason.BAD_SIGNATURE, "the peer did not sign with the key of its certificate")


def _rejected(exc: Untrusted, *, cluster: str | None = None) -> HandshakeRejected:
    return HandshakeRejected(_CODES.get(exc.reason, Code.UNTRUSTED), str(exc), cluster=cluster)
