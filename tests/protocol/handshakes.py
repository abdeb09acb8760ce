"""Keys for handshakes in tests of this room: an HMAC stands in for the signatures of certs/, which are tested there."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.constants import Code
from protocol.errors import HandshakeRejected


@dataclass(frozen=True)
class Identity:
    """Who a stand-in chain names."""

    cluster: str
    agent: str = "agent-1"
    name: str = "tower-0"


def signer(key: bytes):
    """A signer with a shared key."""
    return lambda transcript: hmac.digest(key, transcript, "sha256")


def verifier(key: bytes):
    """Accepts signatures by `key`; the chain's first element names the cluster."""

    def verify(chain: Sequence[bytes], transcript: bytes, signature: bytes) -> Identity:
        if not hmac.compare_digest(signature, hmac.digest(key, transcript, hashlib.sha256)):
            raise HandshakeRejected(Code.BAD_SIGNATURE, "the transcript's signature does not verify")
        return Identity(chain[0].decode())

    return verify
