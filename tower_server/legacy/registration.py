"""What a Go agent sends in `config`, read with bounds. Pure: bytes in, a registration or a RegistrationError out.

The payload is JSON with Go's field names; byte fields are base64. It carries a credential of the member: nothing of it
is ever logged, and the dataclasses do not show it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import PublicKeyAlgorithmOID

from certs.keys import UNREADABLE
from certs.published import published
from protocol.defaults import LEGACY_REGISTRATION
from protocol.jsontext import parse_object

MAX_NAME: Final = 253
MAX_TOKEN: Final = 1024
MAX_CERTIFICATES: Final = 128  # a bundle of 144 roots is too large for Go's packet; OpenSSL takes 0.3 ms for each
_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?|[A-Za-z0-9]|\[[0-9A-Fa-f:.]{2,45}\]")
_BEARER: Final = re.compile(rb"[\x21-\x7e]{1,16384}")
_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"
MAX_RSA_BITS: Final = 4096  # what a signature takes grows with the third power
_KINDS: Final = (
    PublicKeyAlgorithmOID.RSAES_PKCS1_v1_5,
    PublicKeyAlgorithmOID.EC_PUBLIC_KEY,
    PublicKeyAlgorithmOID.ED25519,
)
# Keys of these kinds alone, since the library checks others for hours if they are large: by the PEM's own label, or by
# the identifier at the beginning of PKCS #8.
_KEY: Final = re.compile(rb"-----BEGIN ((?:RSA |EC )?)PRIVATE KEY-----([A-Za-z0-9+/=\s]+)-----END \1PRIVATE KEY-----")
_SIZE: Final = rb"(?:[\x00-\x7f]|\x81.|\x82..)"
_PKCS8: Final = re.compile(
    rb"\x30%b\x02\x01[\x00\x01]\x30%b\x06"
    rb"(?:\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01|\x07\x2a\x86\x48\xce\x3d\x02\x01|\x03\x2b\x65\x70)" % (_SIZE, _SIZE),
    re.DOTALL,
)


class RegistrationError(Exception):
    """Why a registration cannot be read, in words for the agent's log."""


@dataclass(frozen=True, slots=True)
class Target:
    """A destination as the agent announced it: it is dialled by no other name."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def bare_host(self) -> str:
        """Without the brackets of an IPv6 address."""
        return self.host.removeprefix("[").removesuffix("]")


@dataclass(frozen=True, slots=True)
class Credential:
    """How the agent itself is known to the member's apiserver, and what proves the apiserver."""

    ca_pem: str
    certificate_pem: bytes = b""
    key_pem: bytes = field(default=b"", repr=False)
    token: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Claim:
    """Who an agent says it is, before anything else of what it sent is looked at."""

    name: str
    token: str = field(repr=False)
    document: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Registration:
    """What an agent whose claim is good has sent."""

    name: str
    version: str
    kubernetes: Target
    kubesphere: Target | None
    credential: Credential
    token_hash: str = field(default="", repr=False)
    """Of the cluster's token that let it in: with another one on record it has no business here."""


def read_claim(payload: bytes) -> Claim:
    """Raises RegistrationError."""
    if len(payload) > LEGACY_REGISTRATION:
        raise RegistrationError(f"the config payload has {len(payload)} bytes, at most {LEGACY_REGISTRATION} are taken")
    try:
        document = parse_object(payload)
    except ValueError as error:
        raise RegistrationError(f"the config payload is {error}") from None
    return Claim(_text(document, "Name", MAX_NAME), _text(document, "Token", MAX_TOKEN), document)


def read_registration(claim: Claim) -> Registration:
    """Raises RegistrationError. For a claim whose token was checked: keys and certificates cost something to read."""
    document = claim.document
    kubesphere = _text(document, "KubeSphereSvcHost", 300)
    return Registration(
        name=claim.name,
        version=_text(document, "Version", 80),
        kubernetes=_target(_text(document, "KubernetesSvcHost", 300), "KubernetesSvcHost", default=443),
        kubesphere=_target(kubesphere, "KubeSphereSvcHost", default=80) if kubesphere else None,
        credential=_credential(document),
    )


def _text(document: Mapping[str, Any], key: str, most: int) -> str:
    value = document.get(key, "")
    if not isinstance(value, str) or len(value) > most or not value.isprintable():
        raise RegistrationError(f"{key} is not a text of at most {most} printable characters")
    return value


def _target(text: str, key: str, *, default: int) -> Target:
    rest = text.removeprefix("http://").removeprefix("https://").removesuffix("/")
    host, colon, port = rest.rpartition(":")
    if not colon or rest.endswith("]") or (not _is_ipv6(host) and _is_ipv6(rest)):
        host, port = rest, str(default)
    if _is_ipv6(host):  # as a pod's agent joins it with its port; dialled so, the agent would not know where it ends
        host = f"[{host}]"
    if not _HOST.fullmatch(host) or not (port.isascii() and port.isdigit()) or not 0 < int(port[:6]) < 65536:
        raise RegistrationError(f"{key} is {text[:80]!r}, not HOST:PORT")
    return Target(host, int(port))


def _is_ipv6(text: str) -> bool:
    try:
        return "%" not in text and bool(IPv6Address(text))
    except ValueError:
        return False


def _credential(document: Mapping[str, Any]) -> Credential:
    authorities = _certificates(_bytes(document, "CAData"), "CAData")
    chain, key = _bytes(document, "CertData"), _bytes(document, "KeyData")
    token = _bytes(document, "BearerToken").strip()
    if chain or key:
        key = _key_of(chain, key)
    elif not token:
        raise RegistrationError(
            "neither CertData and KeyData nor BearerToken is there: without a credential nobody can be served; "
            "a kubeconfig must hold certificate and key inline"
        )
    if token and not _BEARER.fullmatch(token):
        raise RegistrationError("BearerToken is not a token")
    pem = "".join(each.public_bytes(Encoding.PEM).decode("ascii") for each in authorities)
    return Credential(pem, chain, key, b"" if chain else token)


def _bytes(document: Mapping[str, Any], key: str) -> bytes:
    value = document.get(key)
    if value is None:
        return b""
    try:
        if not isinstance(value, str):
            raise ValueError(key)
        return base64.b64decode(value, validate=True)
    except ValueError:
        raise RegistrationError(f"{key} is not base64") from None


def _certificates(pem: bytes, key: str) -> list[x509.Certificate]:
    """Those that can be read: of a bundle Go takes what it knows as well, and many hold one of an odd kind."""
    blocks, found = pem.split(_BEGIN)[1:], []
    if len(blocks) > MAX_CERTIFICATES:
        raise RegistrationError(f"{key} holds {len(blocks)} certificates, at most {MAX_CERTIFICATES} are taken")
    for block in blocks:
        try:
            certificate = x509.load_pem_x509_certificate(_BEGIN + block)
            whose = published([certificate])
        except UNREADABLE:
            continue
        if whose is not None:
            raise RegistrationError(f"{key} is {whose}: anybody could pass for this apiserver")
        found.append(certificate)
    if pem and not found:
        raise RegistrationError(f"{key} holds no certificates as PEM that can be read")
    return found


def _key_of(chain: bytes, key: bytes) -> bytes:
    """The one key in KeyData, as PEM, when it is that of the first certificate."""
    certificates = _certificates(chain, "CertData")
    if not certificates or not key:
        raise RegistrationError("CertData and KeyData belong together, and one is missing")
    if certificates[0].public_key_algorithm_oid not in _KINDS:
        raise RegistrationError("CertData is a certificate for a key of another kind than RSA, ECDSA or Ed25519")
    found = _KEY.search(key)
    try:
        if found is None or not (found[1] or _PKCS8.match(base64.b64decode(found[2]))):
            raise ValueError("no key of such a kind")
        # Without the check of RSA's two primes, which takes half a second for a common key, and hours for a large one.
        private = load_pem_private_key(found[0], None, unsafe_skip_rsa_key_validation=True)
        form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        public = private.public_key().public_bytes(*form)
        fits = public == certificates[0].public_key().public_bytes(*form)
        fair = not isinstance(private, rsa.RSAPrivateKey) or _is_fair(private)
    except Exception:  # cryptography raises many kinds; none of them may carry key material into a log
        raise RegistrationError("KeyData is not an unencrypted private key (RSA, ECDSA or Ed25519) as PEM") from None
    if not fits:
        raise RegistrationError("KeyData is not the key of the certificate in CertData")
    if not fair:
        raise RegistrationError(f"KeyData is an RSA key of more than {MAX_RSA_BITS} bits, or its parts do not fit")
    return found[0] + b"\n"


def _is_fair(key: rsa.RSAPrivateKey) -> bool:
    """Whether no part is larger than the modulus, whose size bounds what each signature costs."""
    held = key.private_numbers()
    modulus = held.public_numbers.n
    parts = (held.public_numbers.e, held.d, held.p, held.q, held.dmp1, held.dmq1, held.iqmp)
    return modulus.bit_length() <= MAX_RSA_BITS and max(parts) <= modulus
