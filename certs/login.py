"""How a person whom an apiserver knows proves it to a tower server without showing their credential.

They put a key of theirs into a CertificateSigningRequest of the host cluster, which nobody signs: the apiserver writes
into it who made it, and nobody can change that. Whoever then signs a server's nonce with that key is that person. The
statement names the server, so that one that is given to a server is of no use at another.
"""

from __future__ import annotations

from typing import Final

SIGNER_NAME: Final = "tower.kubesphere.io/operator"
"""Of the requests: no signer serves it, so that no certificate ever comes of one."""
NAMESPACE_LABEL: Final = "tower.kubesphere.io/namespace"
"""On the request: the tower that it is for."""
OPERATOR_GROUP: Final = "admin.tower.kubesphere.io"
"""The API group under which RBAC names the calls of the admin API."""
NONCE_BYTES: Final = 32
_DOMAIN: Final = b"tower operator login v1"


def login_statement(*, namespace: str, server: str, request: str, nonce: bytes) -> bytes:
    """What is signed. Each part has its length before it, so that no two logins read the same."""
    parts = (namespace.encode(), server.encode(), request.encode(), nonce)
    return _DOMAIN + b"".join(len(part).to_bytes(4, "big") + part for part in parts)
