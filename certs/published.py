"""Private keys that are public knowledge: whoever trusts one of their certificates trusts anybody.

Go Tower's CA key is in its public repository and in its image, and most installations use it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import PublicKeyAlgorithmOID

GO_TOWER_CA: Final = "5385d3f00da5682f10a92ce6463e35c2de76282e1adf9e2c9f080eff83957267"
"""SHA-256 of the SubjectPublicKeyInfo."""
_READ: Final = (PublicKeyAlgorithmOID.RSAES_PKCS1_v1_5, PublicKeyAlgorithmOID.EC_PUBLIC_KEY)
"""Kinds that cost nothing to read, and theirs is among them; others may take hours (`certs.keys.elliptic_key`)."""


def published(certificates: Iterable[x509.Certificate]) -> str | None:
    """Whose published key stands in one of the certificates; None when all keys are their owners' alone."""
    for certificate in certificates:
        if certificate.public_key_algorithm_oid not in _READ:
            continue
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if hashlib.sha256(key).hexdigest() == GO_TOWER_CA:
            return "the CA of Go Tower, whose private key is published"
    return None
