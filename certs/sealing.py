"""A key to seal enrolments to, vouched for by the server's certificate; and the sealing itself, HPKE of RFC 9180.

Whoever ends TLS between agent and server can neither read nor swap what is sealed: the agent first checks that the
offered key is signed by a tower server whose chain ends at the fingerprint of its token. An offered key has at least
`SEAL_KEY_LIFETIME` left, lives in memory only, and is replaced after that time. After a restart older keys are
unknown, and the agent asks for the offer again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.serialization import Encoding

from certs import codec
from certs.errors import AuthorityError, FingerprintMismatch, MessageError, SealError, Untrusted
from certs.keys import MAX_SIGNATURE_BYTES, UNREADABLE, Signer, verify_signature
from certs.peers import ServerIdentity
from certs.verify import TrustBundle, fingerprint
from protocol import defaults

KEY_BYTES: Final = 32
_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_OFFER: Final = b"tower seal key v1\x00"
_WHAT: Final = "the server's offer"
_ASK_AGAIN: Final = "fetch the server's offer again and seal to the key in it"


@dataclass(frozen=True, slots=True)
class Offer:
    """A checked offer: the one thing that a secret may be sealed to."""

    host: str
    server: ServerIdentity
    seal_key: bytes
    key_id: str


@dataclass(frozen=True, slots=True)
class _SealKey:
    private: X25519PrivateKey
    public: bytes
    created: float

    @property
    def expires(self) -> float:
        return self.created + 2 * defaults.SEAL_KEY_LIFETIME


class Sealer:
    """The server's end: offers a seal key and opens what is sealed to it or to the one before."""

    def __init__(self, *, bundle: TrustBundle, chain_pem: bytes, sign: Signer) -> None:
        """`chain_pem` and `sign` are those of a tower-servers leaf under the bundle's (first) root."""
        self._host = bundle.host
        self._keys: dict[str, _SealKey] = {}
        self.vouch(bundle=bundle, chain_pem=chain_pem, sign=sign)

    def vouch(self, *, bundle: TrustBundle, chain_pem: bytes, sign: Signer) -> None:
        """Use a renewed server certificate from now on; the seal keys stay."""
        certificates = [*x509.load_pem_x509_certificates(chain_pem), bundle.root]
        self._chain = [certificate.public_bytes(Encoding.PEM).decode() for certificate in certificates]
        self._sign = sign
        self._offered: tuple[_SealKey, bytes] | None = None  # signed once, since strangers may ask at any rate

    def offer(self, at: float) -> bytes:
        """The offer as JSON, for anyone who asks."""
        key = self._current(at)
        if self._offered is None or self._offered[0] is not key:
            self._offered = key, self._signed(key)
        return self._offered[1]

    def _signed(self, key: _SealKey) -> bytes:
        return codec.encode(
            {
                "host": self._host,
                "chain": self._chain,
                "seal_key": codec.base64_text(key.public),
                "expires": key.expires,
                "signature": codec.base64_text(self._sign(_statement(self._host, key.public, key.expires))),
            }
        )

    def open(self, sealed: bytes, *, key_id: str, context: bytes, at: float) -> bytes:
        key = self._keys.get(key_id)
        if key is None or at > key.expires:
            raise SealError("the enrolment is sealed to a key that this server no longer has", _ASK_AGAIN)
        return open_sealed(sealed, key.private, context)

    def _current(self, at: float) -> _SealKey:
        self._keys = {key_id: key for key_id, key in self._keys.items() if key.created <= at <= key.expires}
        newest = max(self._keys.values(), key=lambda key: key.created, default=None)
        if newest is None or at > newest.created + defaults.SEAL_KEY_LIFETIME:
            private = X25519PrivateKey.generate()
            newest = _SealKey(private, private.public_key().public_bytes_raw(), at)
            self._keys[seal_key_id(newest.public)] = newest
        return newest


def check_offer(data: bytes, *, ca: str, at: float) -> Offer:
    """The agent's end: nothing is sealed before this has returned.

    Raises FingerprintMismatch when the chain ends at another root than `ca` (SHA-256 in hex), Untrusted or SealError
    when the chain does not vouch for the key, MessageError when the offer is malformed.
    """
    message = codec.decode(data, limit=defaults.MAX_ENROLMENT_BYTES, what=_WHAT)
    host = codec.text(message, "host", limit=63, what=_WHAT)
    seal_key = codec.binary(message, "seal_key", limit=KEY_BYTES, what=_WHAT)
    expires = codec.number(message, "expires", what=_WHAT)
    signature = codec.binary(message, "signature", limit=MAX_SIGNATURE_BYTES, what=_WHAT)
    leaf, *above = _read_chain(message)
    if not above or fingerprint(above[-1]) != ca:
        shown = fingerprint(above[-1]) if above else "no root at all"
        raise FingerprintMismatch(
            f"the server's chain ends at {shown}, the token names {ca}; nothing was sent",
            "take a new token from the server that you mean (one from before a rotation of its CA is void), or "
            "exempt it in whatever answers in its place",
        )
    try:
        bundle = TrustBundle.from_certificates(above)
        server = bundle.verify_server([leaf.public_bytes(Encoding.DER)], at)
    except (AuthorityError, Untrusted) as exc:
        raise SealError(f"the server's chain cannot be trusted: {exc.text}; nothing was sent", exc.mend) from exc
    if bundle.host != host or len(seal_key) != KEY_BYTES:
        raise SealError("the server's offer contradicts its certificate; nothing was sent")
    if not verify_signature(server.public_key, _statement(host, seal_key, expires), signature):
        raise SealError("the server's certificate does not vouch for the key that is offered; nothing was sent")
    if at > expires:
        raise SealError("the server's offer has run out; nothing was sent", "correct the clock of this machine")
    return Offer(host, server, seal_key, seal_key_id(seal_key))


def seal(plaintext: bytes, public_key: bytes, context: bytes) -> bytes:
    """`plaintext` for the holder of the X25519 key, bound to `context`."""
    try:
        return _SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(public_key), info=context)
    except ValueError as exc:
        raise SealError(f"nothing can be sealed to this key ({exc})") from exc


def open_sealed(sealed: bytes, private_key: X25519PrivateKey, context: bytes) -> bytes:
    try:
        return _SUITE.decrypt(sealed, private_key, info=context)
    except (InvalidTag, ValueError) as exc:
        raise SealError("the sealed message was altered, or is meant for someone else", _ASK_AGAIN) from exc


def seal_key_id(public_key: bytes) -> str:
    return hashlib.sha256(public_key).hexdigest()[:16]


def _statement(host: str, seal_key: bytes, expires: float) -> bytes:
    return _OFFER + codec.encode({"host": host, "seal_key": seal_key.hex(), "expires": float(expires)})


def _read_chain(message: codec.Object) -> list[x509.Certificate]:
    chain = message.get("chain")
    if not isinstance(chain, list) or not 1 <= len(chain) <= 4 or not all(isinstance(each, str) for each in chain):
        raise MessageError(f"{_WHAT}: 'chain' must be a list of one to four PEM texts")
    try:
        return [x509.load_pem_x509_certificate(each.encode()) for each in chain]
    except UNREADABLE as exc:
        raise MessageError(f"{_WHAT}: a certificate of the chain cannot be read ({exc})") from exc
