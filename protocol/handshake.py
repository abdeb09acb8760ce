"""The handshake of `tower.v1`: four messages after which both ends know who the other is.

HELLO (agent) -> CHALLENGE (server, signed) -> PROOF (agent, signed) -> WELCOME or REJECT (server). A body is JSON, at
most 16 KiB; signatures cover the exact bytes that were sent, so no canonical form is needed. Each signature's
transcript holds everything before it: both nonces, both chains, versions and features. A replayed PROOF does not verify
because the CHALLENGE that it answers carries a fresh nonce.

No clock, no entropy, no keys here: nonces, signer and verifier are arguments.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from protocol.constants import HEADER_SIZE, VERSION, Code, FrameType
from protocol.defaults import MAX_HANDSHAKE_BYTES
from protocol.errors import HandshakeRejected
from protocol.frames import U32, cut, encode, printable
from protocol.jsontext import parse_object

NONCE_SIZE: Final = 32
MAX_SIGNATURE_BYTES: Final = 512
MAX_CHAIN: Final = 4
MAX_CERTIFICATE_BYTES: Final = 4096
MAX_NAME: Final = 253
MAX_COUNT: Final = 2**63

# A tunnel that the server refuses to go on with by one of these is over.
REFUSED_RESUME: Final = frozenset({Code.UNKNOWN_TUNNEL, Code.STALE_LINK, Code.POSITION})

Signer = Callable[[bytes], bytes]
Chain = Sequence[bytes]


# What a verifier makes of a chain is the caller's; `ServerHandshake` reads `cluster` of it, and nothing else.
Verifier = Callable[[Chain, bytes, bytes], Any]


@dataclass(frozen=True, slots=True)
class Hello:
    """Who the agent says it is; nothing of it is proven yet."""

    cluster: str
    instance: str
    features: frozenset[str]
    software: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Which tunnel an agent goes on with, on which of its links (`epoch`), and how many numbered frames it has.

    `anew`: where that tunnel cannot go on, this handshake is to make a new one in its place. After a restart of the
    server that halves the number of handshakes.
    """

    tunnel: str
    epoch: int
    received: int
    anew: bool = False


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the server granted. `tunnel` names the tunnel in logs and listings; `renew_only` limits it to renewing.

    `received` is the server's answer to a Resume; None for a new tunnel. One that came in place of what was to be
    resumed says in `refused` why.
    """

    tunnel: str
    features: frozenset[str]
    renew_only: bool = False
    received: int | None = None
    refused: HandshakeRejected | None = None


def _pack(kind: FrameType, body: dict[str, Any], sign: Callable[[bytes], bytes] | None = None) -> bytes:
    """A handshake frame; signed bodies are u32 length, body, signature."""
    raw = json.dumps(body, separators=(",", ":")).encode()
    payload = raw if sign is None else U32.pack(len(raw)) + raw + sign(raw)
    if len(payload) > MAX_HANDSHAKE_BYTES:
        raise HandshakeRejected(Code.TOO_LARGE, f"{kind.name} would take {len(payload)} bytes")
    return encode(kind, 0, payload)


def _unpack_signed(payload: bytes) -> tuple[bytes, bytes]:
    if len(payload) < 4:
        raise _bad("a signed message that is cut short")
    (size,) = U32.unpack_from(payload)
    body, signature = payload[4 : 4 + size], payload[4 + size :]
    if len(body) != size or not 0 < len(signature) <= MAX_SIGNATURE_BYTES:
        raise _bad("a signed message whose lengths do not fit")
    return body, signature


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        return parse_object(raw)
    except ValueError as error:
        raise _bad(f"a message that is {error}") from error


def _bad(text: str) -> HandshakeRejected:
    return HandshakeRejected(Code.PROTOCOL, text)


def _name(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not value.isprintable():
        raise _bad(f"{key} is missing or not a name")
    return value


def _binary(value: object, what: str, most: int) -> bytes:
    try:
        if not isinstance(value, str) or len(value) > 2 * most:
            raise ValueError
        raw = base64.b64decode(value, validate=True)
    except ValueError as error:
        raise _bad(f"{what} is not base64") from error
    if not 0 < len(raw) <= most:
        raise _bad(f"{what} has {len(raw)} bytes, at most {most} are taken")
    return raw


def _names(body: dict[str, Any], key: str) -> frozenset[str]:
    value = body.get(key)
    if not isinstance(value, list) or len(value) > 32 or not all(isinstance(v, str) and len(v) <= 64 for v in value):
        raise _bad(f"{key} is not a short list of names")
    return frozenset(value)


def _nonce(body: dict[str, Any]) -> bytes:
    nonce = _binary(body.get("nonce"), "nonce", NONCE_SIZE)
    if len(nonce) != NONCE_SIZE:
        raise _bad(f"a nonce of {len(nonce)} bytes, expected {NONCE_SIZE}")
    return nonce


def _chain(body: dict[str, Any]) -> list[bytes]:
    value = body.get("chain")
    if not isinstance(value, list) or not 0 < len(value) <= MAX_CHAIN:
        raise _bad(f"chain is not a list of 1 to {MAX_CHAIN} certificates")
    return [_binary(item, "a certificate", MAX_CERTIFICATE_BYTES) for item in value]


def _count(body: dict[str, Any], key: str) -> int:
    value = body.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MAX_COUNT:
        raise _bad(f"{key} is missing or not a count")
    return value


def _resume(body: dict[str, Any]) -> Resume | None:
    value = body.get("resume")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _bad("resume is not an object")
    return Resume(_name(value, "tunnel"), _count(value, "epoch"), _count(value, "received"), value.get("anew") is True)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _transcript(label: bytes, *parts: bytes) -> bytes:
    """What is signed: a label, and a hash of length-prefixed parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(U32.pack(len(part)) + part)
    return b"tower.v1 " + label + b"\0" + digest.digest()


class AgentHandshake:
    """The agent's end. `hello()`, then `challenged()` for CHALLENGE, then `answered()` for the last message.

    `resume` is what to go on with, if the server agrees to `needs` again; None for a new tunnel.
    """

    def __init__(
        self,
        *,
        cluster: str,
        instance: str,
        chain: Chain,
        sign: Signer,
        verify: Verifier,
        nonce: bytes,
        features: Iterable[str] = (),
        software: str = "",
    ) -> None:
        if len(nonce) != NONCE_SIZE:
            raise ValueError(f"nonce must have {NONCE_SIZE} bytes")
        self._chain = [bytes(certificate) for certificate in chain]
        self._sign = sign
        self._verify = verify
        self._features = frozenset(features)
        body = {
            "versions": [VERSION],
            "features": sorted(self._features),
            "cluster": cluster,
            "instance": instance,
            "nonce": _text(nonce),
            "software": software,
        }
        self._hello = _pack(FrameType.HELLO, body)
        self._agreed: frozenset[str] = frozenset()
        self.resume: Resume | None = None
        self.needs: frozenset[str] = frozenset()
        self.server: Any = None
        self.server_chain: list[bytes] = []

    def hello(self) -> bytes:
        """The first frame."""
        return self._hello

    def challenged(self, payload: bytes) -> bytes:
        """Check the server's proof; the PROOF frame. HandshakeRejected when the server is not who it must be."""
        raw, signature = _unpack_signed(payload)
        body = _parse(raw)
        if body.get("version") != VERSION:
            raise HandshakeRejected(Code.VERSION, f"the server chose version {body.get('version')!r:.40}")
        _nonce(body)
        agreed = _names(body, "features")
        if not agreed <= self._features:
            raise _bad("the server chose features that were not offered")
        self._agreed = agreed
        self.server_chain = _chain(body)
        self.server = self._verify(self.server_chain, _transcript(b"challenge", self._hello, raw), signature)
        proof: dict[str, Any] = {"chain": [_text(certificate) for certificate in self._chain]}
        if self.resume is not None and self.needs <= agreed:
            proof["resume"] = asdict(self.resume)
            if not self.resume.anew:
                del proof["resume"]["anew"]
        else:
            self.resume = None
        return _pack(FrameType.PROOF, proof, lambda own: self._sign(_transcript(b"proof", self._hello, payload, own)))

    def answered(self, kind: int, payload: bytes) -> Welcome:
        """The server's verdict. HandshakeRejected when it is REJECT."""
        body = _parse(payload)
        if kind == FrameType.REJECT:
            raise rejection(body)
        if kind != FrameType.WELCOME:
            raise _bad(f"a frame of type {kind} in place of WELCOME")
        tunnel, renew_only, received, refused = _name(body, "tunnel"), body.get("renew_only") is True, None, None
        why = body.get("refused")
        if self.resume is not None and self.resume.anew and isinstance(why, dict):
            refused = rejection(why)
        elif self.resume is not None:
            received = _count(body, "received")
            if tunnel != self.resume.tunnel or renew_only:
                raise _bad("the server answered a resume with another tunnel")
        return Welcome(tunnel, self._agreed, renew_only, received, refused)


class ServerHandshake:
    """The server's end. `greeted()` for HELLO, `proven()` for PROOF, then `welcome()` or `reject()`."""

    def __init__(
        self,
        *,
        chain: Chain,
        sign: Signer,
        verify: Verifier,
        nonce: bytes,
        features: Iterable[str] = (),
    ) -> None:
        if len(nonce) != NONCE_SIZE:
            raise ValueError(f"nonce must have {NONCE_SIZE} bytes")
        self._chain = [_text(certificate) for certificate in chain]
        self._sign = sign
        self._verify = verify
        self._nonce = nonce
        self._features = frozenset(features)
        self._greeting = b""
        self._challenge = b""
        self.hello: Hello | None = None
        self.resume: Resume | None = None
        self.features: frozenset[str] = frozenset()

    def greeted(self, payload: bytes) -> bytes:
        """The CHALLENGE frame for a HELLO."""
        body = _parse(payload)
        versions = body.get("versions")
        if not isinstance(versions, list) or VERSION not in versions:
            raise HandshakeRejected(Code.VERSION, f"no version in common: this server speaks {VERSION}")
        _nonce(body)
        software = body.get("software")
        offered = _names(body, "features")
        self.hello = Hello(
            _name(body, "cluster"),
            _name(body, "instance"),
            offered,
            printable(software[:64]) if isinstance(software, str) else "",
        )
        self.features = offered & self._features
        self._greeting = encode(FrameType.HELLO, 0, payload)
        answer = {
            "version": VERSION,
            "features": sorted(self.features),
            "nonce": _text(self._nonce),
            "chain": self._chain,
        }
        frame = _pack(
            FrameType.CHALLENGE, answer, lambda raw: self._sign(_transcript(b"challenge", self._greeting, raw))
        )
        self._challenge = frame[HEADER_SIZE:]
        return frame

    def proven(self, payload: bytes) -> Any:
        """The verified identity behind a PROOF; `resume` is what it asks to go on with.

        HandshakeRejected when it does not verify or names another cluster.
        """
        if self.hello is None:
            raise _bad("PROOF before HELLO")
        raw, signature = _unpack_signed(payload)
        body = _parse(raw)
        chain, resume = _chain(body), _resume(body)
        try:
            identity = self._verify(chain, _transcript(b"proof", self._greeting, self._challenge, raw), signature)
        except HandshakeRejected as rejected:
            # What is proven of an agent of one cluster must not be noted for another that it has named.
            self._expect(rejected.cluster or self.hello.cluster)
            raise
        self._expect(identity.cluster)
        self.resume = resume
        return identity

    def _expect(self, cluster: str) -> None:
        assert self.hello is not None
        if cluster != self.hello.cluster:
            raise HandshakeRejected(
                Code.WRONG_CLUSTER,
                f"the identity belongs to cluster {cluster}, the agent asked for {self.hello.cluster}",
            )

    def welcome(
        self,
        tunnel: str,
        *,
        renew_only: bool = False,
        received: int | None = None,
        refused: HandshakeRejected | None = None,
    ) -> bytes:
        """The WELCOME frame; `received` answers `resume`, or `refused` why there is a new tunnel in its place."""
        body: dict[str, Any] = {"tunnel": tunnel}
        if refused is not None:
            body["refused"] = {"code": int(refused.code), "text": cut(refused.text).decode()}
        if received is not None:
            body["received"] = received
        if renew_only:
            body["renew_only"] = True
        return _pack(FrameType.WELCOME, body)


def reject(code: Code, text: str, retry_after: float | None = None) -> bytes:
    """A REJECT frame, with which either end may end the handshake."""
    body: dict[str, Any] = {"code": int(code), "text": cut(text).decode()}
    if retry_after is not None:
        body["retry_after"] = round(retry_after, 3)
    return _pack(FrameType.REJECT, body)


def rejection(body: dict[str, Any]) -> HandshakeRejected:
    """What a REJECT says, as the exception to raise."""
    code, text, retry_after = body.get("code"), body.get("text"), body.get("retry_after")
    known = Code(code) if isinstance(code, int) and code in Code._value2member_map_ else Code.INTERNAL
    sentence = printable(cut(text).decode()) if isinstance(text, str) else "the peer gave no reason"
    wait = float(retry_after) if isinstance(retry_after, int | float) and 0 <= retry_after < 86400 else None
    return HandshakeRejected(known, sentence, wait, by_peer=True)


def parse_reject(payload: bytes) -> HandshakeRejected:
    """The exception that a REJECT frame's payload stands for."""
    return rejection(_parse(payload))
