"""The statement that an agent signs with its own key when it leaves its host for good: who it is.

It contains no time and no nonce, since replaying it only revokes an agent that has left already. An expired identity
may leave too: leaving gives its sender nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from certs import codec
from certs.errors import Reason, Untrusted
from certs.keys import MAX_SIGNATURE_BYTES, Signer, verify_signature
from certs.peers import AgentIdentity
from certs.verify import TrustBundle

_CONTEXT: Final = b"tower leaving v1\x00"
_WHAT: Final = "the request to leave"
MAX_REQUEST_BYTES: Final = 48 * 1024
MAX_CERTIFICATE_BYTES: Final = 8 * 1024
MAX_CHAIN: Final = 4


def ask_to_leave(sign: Signer, *, host: str, cluster: str, agent: str, chain: Sequence[bytes]) -> bytes:
    """The request's body; `chain` as DER, leaf first, `sign` by its key."""
    proof = sign(_statement(host, cluster, agent))
    return codec.encode({"chain": [codec.base64_text(each) for each in chain], "proof": codec.base64_text(proof)})


def who_leaves(body: bytes, bundle: TrustBundle) -> AgentIdentity:
    """The agent that signed it. MessageError for what is no request, Untrusted for what proves nothing."""
    message = codec.decode(body, limit=MAX_REQUEST_BYTES, what=_WHAT)
    chain = codec.binaries(message, "chain", most=MAX_CHAIN, limit=MAX_CERTIFICATE_BYTES, what=_WHAT)
    proof = codec.binary(message, "proof", limit=MAX_SIGNATURE_BYTES, what=_WHAT)
    identity = bundle.identify_agent(chain)
    statement = _statement(identity.host, identity.cluster, identity.agent)
    if not verify_signature(identity.public_key, statement, proof):
        raise Untrusted(Reason.BAD_SIGNATURE, "the request to leave is not signed with the key of its certificate")
    return identity


def _statement(host: str, cluster: str, agent: str) -> bytes:
    return _CONTEXT + codec.encode({"host": host, "cluster": cluster, "agent": agent})
