"""The issuers under a host's root, and the X.509 fields that make each kind of certificate what it is.

Pinning is exact: a verifier asks for one issuer, one set of extended key usages and one role, so no kind passes for
another. The serving kinds carry clientAuth besides serverAuth on purpose: OpenSSL would otherwise end the handshake of
a peer that shows one as a caller, with an alert that names nothing, while the agent owes it a 401 that says what was
shown. It gives its holder nothing, since every verifier here pins the issuer too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs.names import AgentRole, ClientRole, ReplicaRole, Role, ServerRole, ServingRole

SERVER_AUTH: Final = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT_AUTH: Final = ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True, slots=True)
class Issuer:
    """One issuer: what its certificates are called in messages, their role and their exact extended key usages."""

    name: str
    noun: str
    role: type[Role]
    usages: tuple[x509.ObjectIdentifier, ...]


TOWER_SERVERS: Final = Issuer("tower-servers", "a tower server's certificate", ServerRole, (SERVER_AUTH, CLIENT_AUTH))
AGENT_SERVING: Final = Issuer(
    "agent-serving", "a cluster's serving certificate", ServingRole, (SERVER_AUTH, CLIENT_AUTH)
)
AGENTS: Final = Issuer("agents", "an agent's identity", AgentRole, (CLIENT_AUTH,))
CLIENTS: Final = Issuer("clients", "a caller's certificate", ClientRole, (CLIENT_AUTH,))
REPLICAS: Final = Issuer("replicas", "a tower replica's certificate", ReplicaRole, (SERVER_AUTH, CLIENT_AUTH))

ISSUERS: Final = {issuer.name: issuer for issuer in (TOWER_SERVERS, AGENT_SERVING, AGENTS, CLIENTS, REPLICAS)}
INNER: Final = frozenset({REPLICAS.name})
"""Issuers that only the servers of a host know: they are in no trust bundle that leaves it, so to everybody else their
certificates are those of strangers."""


def ca_key_usage() -> x509.KeyUsage:
    return _key_usage(signs_certificates=True)


def leaf_key_usage() -> x509.KeyUsage:
    return _key_usage(digital_signature=True)


def _key_usage(*, digital_signature: bool = False, signs_certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
