"""What an agent signs to ask for new certificates: both requests, by the key of the identity that it has proven.

A tunnel proves its agent once, at the handshake. Whoever ends the outer TLS in between could inject a request to renew
later, and would get an identity and a serving certificate of the member; hence this signature. It names the agent, so
that it cannot be used for another one; replaying it only certifies the same keys again.
"""

from __future__ import annotations

from typing import Final

from certs import codec
from certs.errors import IssueRefused
from certs.keys import Signer, verify_signature
from certs.peers import AgentIdentity

_CONTEXT: Final = b"tower renewal v1\x00"


def prove_renewal(sign: Signer, *, host: str, cluster: str, agent: str, csr: bytes, serving_csr: bytes) -> bytes:
    """The proof that goes with the two requests; `sign` is that of the identity in use."""
    return sign(_statement(host, cluster, agent, csr, serving_csr))


def check_renewal(identity: AgentIdentity, proof: bytes, *, csr: bytes, serving_csr: bytes) -> None:
    """IssueRefused unless the holder of `identity` asked for exactly these two."""
    statement = _statement(identity.host, identity.cluster, identity.agent, csr, serving_csr)
    if not verify_signature(identity.public_key, statement, proof):
        raise IssueRefused(
            f"the requests to renew are not signed by the identity of agent {identity.agent} of {identity.cluster}",
            "bring server and agent to the same version; if it stays so, something on the way puts in requests",
        )


def _statement(host: str, cluster: str, agent: str, csr: bytes, serving_csr: bytes) -> bytes:
    return _CONTEXT + codec.encode(
        {
            "host": host,
            "cluster": cluster,
            "agent": agent,
            "csr": codec.base64_text(csr),
            "serving_csr": codec.base64_text(serving_csr),
        }
    )
