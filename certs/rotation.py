"""How agents learn of another tower CA: by the new trust bundle, signed by every root that is trusted now.

A tunnel proves its server once, at the handshake, and whoever ends the outer TLS in between could inject a message
later. So the new bundle is signed by the roots, and an agent verifies it by a root that it trusts already. Its number
only goes up: an earlier bundle, which still contains a root that was taken away, is refused.
"""

from __future__ import annotations

import hashlib
from typing import Final

from certs import codec
from certs.ca import Authority
from certs.errors import Reason, Untrusted
from certs.keys import MAX_SIGNATURE_BYTES, verify_signature
from certs.verify import MAX_BUNDLE_BYTES, MAX_ROOTS, TrustBundle

_CONTEXT: Final = b"tower trust v1\x00"
_WHAT: Final = "the announcement of a trust bundle"


def trust_id(number: int, bundle: TrustBundle) -> str:
    """What an agent says that it believes: the number alone may stand for another bundle, of before a restore."""
    return f"{number}.{hashlib.sha256(bundle.to_pem()).hexdigest()[:16]}"


def announce(authority: Authority) -> dict[str, object]:
    """The fields of the message."""
    statement = _statement(authority.host, authority.number, authority.bundle.to_pem())
    return {
        "number": authority.number,
        "bundle": authority.bundle.to_pem().decode(),
        "signatures": [codec.base64_text(sign(statement)) for sign in authority.root_signers()],
    }


def announced(message: codec.Object, *, trusted: TrustBundle, number: int) -> tuple[int, TrustBundle] | None:
    """The bundle to trust from now on with its number, or None when it is the one that is trusted already.

    Args:
        trusted: the bundle in force.
        number: its number; 0 for one that came with the enrolment.

    Raises MessageError, AuthorityError for what is no announcement, Untrusted for what no trusted root has signed or
    is older than what is in force.
    """
    claimed = codec.count(message, "number", what=_WHAT)
    pem = codec.text(message, "bundle", limit=MAX_BUNDLE_BYTES, what=_WHAT).encode()
    proofs = codec.binaries(message, "signatures", most=MAX_ROOTS, limit=MAX_SIGNATURE_BYTES, what=_WHAT)
    statement = _statement(trusted.host, claimed, pem)
    if not any(verify_signature(key, statement, proof) for key in trusted.root_keys() for proof in proofs):
        raise Untrusted(Reason.BAD_SIGNATURE, f"{_WHAT} is signed by no root that is trusted for {trusted.host}")
    bundle = TrustBundle.from_pem(pem)
    if bundle.host != trusted.host:
        raise Untrusted(Reason.WRONG_ROLE, f"{_WHAT} is one of host {bundle.host}, not {trusted.host}")
    if claimed < number:
        raise Untrusted(Reason.EXPIRED, f"{_WHAT} has the number {claimed}, and {number} is in force")
    if bundle.to_pem() == trusted.to_pem():
        return (claimed, bundle) if claimed > number else None
    if claimed == number:
        raise Untrusted(Reason.BAD_SIGNATURE, f"two announcements of a trust bundle have the number {claimed}")
    return claimed, bundle


def _statement(host: str, number: int, bundle: bytes) -> bytes:
    return _CONTEXT + codec.encode({"host": host, "number": number, "bundle": bundle.decode()})
