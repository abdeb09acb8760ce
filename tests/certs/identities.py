"""Identities for the tests of the stores."""

from __future__ import annotations

from certs.ca import Authority
from certs.identity import PendingJoin, StoredIdentity
from tests.certs.conftest import AT


def enrolled(authority: Authority, pending: PendingJoin, *, at: float = AT, cluster: str = "edge-1") -> StoredIdentity:
    """What a join of `pending` ends with."""
    public, serving = pending.key.public_key(), pending.serving_key.public_key()
    return StoredIdentity(
        host=authority.host,
        url="https://tower:8443",
        cluster=cluster,
        agent="a1",
        key_pem=pending.key_pem,
        serving_key_pem=pending.serving_key_pem,
        chain_pem=authority.issue_agent(cluster, "a1", public_key=public, at=at).chain_pem,
        serving_chain_pem=authority.issue_serving(cluster, public_key=serving, at=at).chain_pem,
        trust_pem=authority.bundle.to_pem(),
    )
