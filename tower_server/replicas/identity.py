"""What this server shows to the others of its host, and how it knows them.

Key and certificate are made at each start and never written down; the certificate is from the *replicas* issuer of
the CA that all of them share, and its role is the server's name. Contexts are made anew with each certificate, so
that they also follow a rotation of the CA; connections that stand keep the one that they began with.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence

from certs.ca import Authority
from certs.errors import Reason, Untrusted
from certs.generation import Issued
from certs.keys import PrivateKey, generate_key, key_to_pem
from certs.peers import ReplicaIdentity
from certs.tls import replica_contexts
from protocol import defaults


class ReplicaCertificate:
    """Call `renew` when `renew_at` has passed, and when the CA has changed."""

    def __init__(self, authority: Authority, *, name: str, at: float) -> None:
        self.name = name
        self._authority = authority
        self._key: PrivateKey = generate_key()
        self._known: dict[bytes, ReplicaIdentity] = {}  # by leaf, so that each is verified once
        self.issued: Issued
        self.called: ssl.SSLContext
        self.calling: ssl.SSLContext
        self.renew(at=at)

    @property
    def renew_at(self) -> float:
        return self.issued.not_before + (self.issued.not_after - self.issued.not_before) * defaults.RENEW_AT

    def renew(self, *, at: float) -> None:
        self.issued = self._authority.issue_replica(self.name, public_key=self._key.public_key(), at=at)
        self.called, self.calling = replica_contexts(
            self._authority.inner_bundle, chain_pem=self.issued.chain_pem, key_pem=key_to_pem(self._key)
        )
        self._known.clear()

    def verify(self, chain: Sequence[bytes], *, at: float, name: str | None = None) -> ReplicaIdentity:
        """Who the peer is; Untrusted unless it is a server of this host, and the one of that name."""
        leaf = chain[0] if chain else b""
        identity = self._known.get(leaf)
        if identity is None:
            identity = self._known[leaf] = self._authority.inner_bundle.verify_replica(chain, at)
        identity.check(at)
        if name is not None and identity.name != name:
            raise Untrusted(
                Reason.WRONG_ROLE,
                f"the server that was called as {name} is {identity.name}",
                "give each server of a host a name and an address of its own (`replica.name`, `replica.address`)",
            )
        return identity
