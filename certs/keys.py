"""Private keys, CSRs and signatures: ECDSA on P-256 with SHA-256, and nothing else.

One kind of key keeps every verifier short, and leaves a peer no weak or exotic kind to bring.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID, PublicKeyAlgorithmOID

from certs.errors import AuthorityError, IssueRefused

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey
Signer = Callable[[bytes], bytes]

MAX_CSR_BYTES: Final = 8 * 1024  # a P-256 request with a few names has some 500 bytes
MAX_SIGNATURE_BYTES: Final = 80  # a DER ECDSA signature on P-256 has at most 72
UNREADABLE: Final = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)  # what foreign bytes can raise
_ALGORITHM: Final = ec.ECDSA(SHA256())
_MAKE_A_KEY: Final = "make one by `openssl ecparam -name prime256v1 -genkey -noout`"


def generate_key() -> PrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: PrivateKey) -> bytes:
    """PKCS#8, unencrypted: whoever stores it guards it by file mode."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_from_pem(pem: bytes, *, what: str) -> PrivateKey:
    """The P-256 key in `pem`; AuthorityError names `what` it was read for."""
    try:
        key = load_pem_private_key(pem, password=None)
    except UNREADABLE as exc:
        raise AuthorityError(f"the private key of {what} cannot be read ({exc})") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise AuthorityError(f"the private key of {what} is not an ECDSA key on P-256")
    return key


def signer(key: PrivateKey) -> Signer:
    """A function that signs a transcript with `key`."""
    return lambda transcript: key.sign(transcript, _ALGORITHM)


def verify_signature(public_key: PublicKey, transcript: bytes, signature: bytes) -> bool:
    """Whether the holder of `public_key` signed `transcript`."""
    if len(signature) > MAX_SIGNATURE_BYTES:
        return False
    try:
        public_key.verify(signature, transcript, _ALGORITHM)
    except InvalidSignature:
        return False
    return True


def key_fingerprint(public_key: PublicKey) -> str:
    """SHA-256 of the SubjectPublicKeyInfo in hex: what 'the same key' means when an enrolment is asked for again."""
    return hashlib.sha256(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def make_csr(key: PrivateKey, common_name: str = "") -> bytes:
    """A PEM request for `key`. Only its key counts: the authority decides every name."""
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])] if common_name else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


def elliptic_key(of: x509.Certificate | x509.CertificateSigningRequest) -> PublicKey | None:
    """The key in it; None for one of another kind, which is not read: to check a Diffie-Hellman group, whose size
    whoever sends it chooses, takes minutes and hours."""
    if _kind(of) != PublicKeyAlgorithmOID.EC_PUBLIC_KEY:
        return None
    key = of.public_key()
    return key if isinstance(key, ec.EllipticCurvePublicKey) else None


def _kind(of: x509.Certificate | x509.CertificateSigningRequest) -> x509.ObjectIdentifier:
    return of.public_key_algorithm_oid  # type: ignore[union-attr]  # its stub knows that of certificates only


def public_key_from_csr(csr: bytes) -> PublicKey:
    """The key of a PEM or DER request whose holder signed it. Everything else that it asks for is ignored."""
    if len(csr) > MAX_CSR_BYTES:
        raise IssueRefused(f"the CSR has {len(csr)} bytes", f"send at most {MAX_CSR_BYTES}, a key and its signature")
    pem = csr.lstrip().startswith(b"-----BEGIN")
    try:
        request = x509.load_pem_x509_csr(csr) if pem else x509.load_der_x509_csr(csr)
        kind, key = _kind(request), elliptic_key(request)
        valid = key is not None and request.is_signature_valid
    except (*UNREADABLE, InvalidSignature) as exc:
        raise IssueRefused(f"the CSR cannot be read ({exc})", "send one PKCS#10 request, PEM or DER") from exc
    if key is None:
        raise IssueRefused(
            f"the CSR holds a key of another kind (OID {kind.dotted_string}) than ECDSA P-256", _MAKE_A_KEY
        )
    if not isinstance(key.curve, ec.SECP256R1):
        raise IssueRefused(f"the CSR holds a key on the curve {key.curve.name}, not on P-256", _MAKE_A_KEY)
    if not valid:
        raise IssueRefused(
            "the CSR is not signed by the key that it holds", "sign the request with its own private key"
        )
    return key
