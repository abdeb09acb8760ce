"""What an agent and the server say to each other when a member joins, sealed both ways.

The request is sealed to the offered key, the answer to a key that the request carries; both are bound to host and
token id, and the answer to the request's nonce too, which only the server could read: so it is the server's, and the
answer to this request. The agent still checks everything in it against the token's fingerprint and its own keys.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from certs import codec
from certs.errors import AuthorityError, FingerprintMismatch, ListRefused, MessageError, SealError, Untrusted
from certs.keys import MAX_CSR_BYTES, PublicKey, key_fingerprint
from certs.peers import AgentIdentity
from certs.revocation import verify_list
from certs.sealing import KEY_BYTES, Offer, Sealer, open_sealed, seal
from certs.token import EnrolmentToken, is_token_id
from certs.verify import MAX_BUNDLE_BYTES, TrustBundle, load_chain
from protocol import defaults

NONCE_BYTES: Final = 32
MAX_CHAIN_BYTES: Final = 32 * 1024
_REQUEST: Final = "tower enrolment request v1"
_REPLY: Final = "tower enrolment reply v1"


@dataclass(frozen=True, slots=True)
class EnrolmentRequest:
    """What the agent seals. `csr` is for its identity, `serving_csr` for the certificate that callers see."""

    secret: str = field(repr=False)
    csr: bytes
    serving_csr: bytes
    nonce: bytes
    reply_key: bytes

    def encode(self) -> bytes:
        return codec.encode(
            {
                "secret": self.secret,
                "csr": codec.base64_text(self.csr),
                "serving_csr": codec.base64_text(self.serving_csr),
                "nonce": codec.base64_text(self.nonce),
                "reply_key": codec.base64_text(self.reply_key),
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> EnrolmentRequest:
        what = "the enrolment request"
        message = codec.decode(data, limit=defaults.MAX_ENROLMENT_BYTES, what=what)
        request = cls(
            secret=codec.text(message, "secret", limit=64, what=what),
            csr=codec.binary(message, "csr", limit=MAX_CSR_BYTES, what=what),
            serving_csr=codec.binary(message, "serving_csr", limit=MAX_CSR_BYTES, what=what),
            nonce=codec.binary(message, "nonce", limit=NONCE_BYTES, what=what),
            reply_key=codec.binary(message, "reply_key", limit=KEY_BYTES, what=what),
        )
        if len(request.nonce) != NONCE_BYTES or len(request.reply_key) != KEY_BYTES:
            raise SealError("the enrolment request's nonce or reply key has the wrong length")
        return request


@dataclass(frozen=True, slots=True)
class EnrolmentReply:
    """What the server answers: PEM chains (leaf first), the trust bundle, and the signed revocation list if any."""

    host: str
    cluster: str
    agent: str
    chain: bytes
    serving_chain: bytes
    trust: bytes
    revocations: bytes = b""

    def encode(self) -> bytes:
        return codec.encode(
            {
                "host": self.host,
                "cluster": self.cluster,
                "agent": self.agent,
                "chain": codec.base64_text(self.chain),
                "serving_chain": codec.base64_text(self.serving_chain),
                "trust": codec.base64_text(self.trust),
                "revocations": codec.base64_text(self.revocations),
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> EnrolmentReply:
        what = "the enrolment reply"
        message = codec.decode(data, limit=defaults.MAX_ENROLLED_BYTES, what=what)
        return cls(
            host=codec.text(message, "host", limit=63, what=what),
            cluster=codec.text(message, "cluster", limit=63, what=what),
            agent=codec.text(message, "agent", limit=63, what=what),
            chain=codec.binary(message, "chain", limit=MAX_CHAIN_BYTES, what=what),
            serving_chain=codec.binary(message, "serving_chain", limit=MAX_CHAIN_BYTES, what=what),
            trust=codec.binary(message, "trust", limit=MAX_BUNDLE_BYTES, what=what),
            revocations=codec.binary(
                message, "revocations", limit=defaults.MAX_REVOCATION_BYTES, what=what, required=False
            ),
        )


class AgentEnrolment:
    """The agent's end of one attempt: `request` is what to POST, `open_reply` reads the answer."""

    def __init__(self, offer: Offer, token: EnrolmentToken, *, csr: bytes, serving_csr: bytes) -> None:
        self._offer = offer
        self._token = token
        self._private = X25519PrivateKey.generate()
        self._request = EnrolmentRequest(
            secret=token.secret,
            csr=csr,
            serving_csr=serving_csr,
            nonce=secrets.token_bytes(NONCE_BYTES),
            reply_key=self._private.public_key().public_bytes_raw(),
        )
        context = _context(_REQUEST, offer.host, token.id)
        sealed = seal(self._request.encode(), offer.seal_key, context)
        self.request = codec.encode({"id": token.id, "key": offer.key_id, "sealed": codec.base64_text(sealed)})

    def open_reply(
        self, data: bytes, *, public_key: PublicKey, serving_key: PublicKey, at: float
    ) -> tuple[EnrolmentReply, AgentIdentity]:
        """The reply and the identity in it, when every part of it is what this agent asked for."""
        what = "the server's answer"
        message = codec.decode(data, limit=2 * defaults.MAX_ENROLLED_BYTES, what=what)
        sealed = codec.binary(message, "sealed", limit=defaults.MAX_ENROLLED_BYTES, what=what)
        context = _context(_REPLY, self._offer.host, self._token.id, self._request.nonce.hex())
        reply = EnrolmentReply.decode(open_sealed(sealed, self._private, context))
        return reply, self._check(reply, public_key, serving_key, at)

    def _check(self, reply: EnrolmentReply, public_key: PublicKey, serving_key: PublicKey, at: float) -> AgentIdentity:
        try:
            bundle = TrustBundle.from_pem(reply.trust)
            if bundle.fingerprint != self._token.ca:
                raise FingerprintMismatch(
                    f"the trust bundle answered has the root {bundle.fingerprint}, the token names {self._token.ca}"
                )
            identity = bundle.verify_agent(load_chain(reply.chain), at)
            serving = bundle.verify_serving(load_chain(reply.serving_chain), at)
            if reply.revocations:
                verify_list(reply.revocations, issuers=bundle.revocation_keys(), host=bundle.host)
        except (AuthorityError, Untrusted, ListRefused) as exc:
            raise SealError(f"the server's answer cannot be used: {exc.text}", exc.mend) from exc
        named = (reply.host, reply.cluster, reply.agent)
        fits = (
            named == (identity.host, identity.cluster, identity.agent)
            and (identity.host, identity.cluster) == (self._offer.host, self._token.cluster)
            and serving.cluster == identity.cluster
            and key_fingerprint(identity.public_key) == key_fingerprint(public_key)
            and key_fingerprint(serving.public_key) == key_fingerprint(serving_key)
        )
        if not fits:
            raise SealError("the server's answer is for another host, cluster or key than the one that asked")
        return identity


@dataclass(frozen=True, slots=True)
class Received:
    """A request that the server has opened; its secret is still to be compared."""

    host: str
    token_id: str
    request: EnrolmentRequest

    def seal_reply(self, reply: EnrolmentReply) -> bytes:
        """The body of the answer."""
        context = _context(_REPLY, self.host, self.token_id, self.request.nonce.hex())
        sealed = seal(reply.encode(), self.request.reply_key, context)
        return codec.encode({"sealed": codec.base64_text(sealed)})


def receive(data: bytes, *, sealer: Sealer, host: str, at: float) -> Received:
    """The server's end: open a posted body. MessageError or SealError when it cannot be; nothing was looked up yet."""
    what = "the enrolment"
    message = codec.decode(data, limit=defaults.MAX_ENROLMENT_BYTES, what=what)
    token_id = codec.text(message, "id", limit=32, what=what)
    if not is_token_id(token_id):
        raise MessageError(f"{what}: 'id' is not that of a token")
    key_id = codec.text(message, "key", limit=16, what=what)
    sealed = codec.binary(message, "sealed", limit=defaults.MAX_ENROLMENT_BYTES, what=what)
    plaintext = sealer.open(sealed, key_id=key_id, context=_context(_REQUEST, host, token_id), at=at)
    return Received(host, token_id, EnrolmentRequest.decode(plaintext))


def _context(*parts: str) -> bytes:
    return codec.encode({"context": parts})
