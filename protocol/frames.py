"""Frames of `tower.v1`: how they are written and how they are found in a stream of bytes.

The payloads of a link's binary WebSocket messages, joined, are a sequence of frames. A sender puts whole frames into
each message; a receiver does not rely on it, since anything between the two may cut messages anew. Limits are checked
on the header, before a byte of the payload is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

from protocol.constants import HEADER, HEADER_SIZE, Code, FrameType
from protocol.defaults import MAX_FRAME_PAYLOAD
from protocol.errors import RemoteProtocolError

U64: Final = Struct("!Q")
U32: Final = Struct("!I")
GOAWAY_BODY: Final = Struct("!III")  # code, deadline in ms, retry-after in ms; a sentence follows
MAX_TEXT_BYTES: Final = 1024  # of the sentence in OPEN_ERR, RST, GOAWAY, CLOSE
MAX_NAME_BYTES: Final = 255  # service, caller address, connection id: each has a length of one byte

# Names end in logs and terminals. Spelled out, since what else is "printable" differs between versions of Unicode.
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")

Frame = tuple[int, int, int, memoryview]  # type, flags, stream id, payload (borrowed until the next feed)


def encode(kind: FrameType, stream: int, payload: bytes = b"") -> bytes:
    """One whole frame, without flags."""
    return HEADER.pack(kind, 0, 0, stream, len(payload)) + payload


def encode_reason(kind: FrameType, stream: int, code: Code, text: str) -> bytes:
    """OPEN_ERR, RST or CLOSE: a code and a sentence, cut to the limit at a character."""
    return encode(kind, stream, U32.pack(code) + cut(text))


def cut(text: str) -> bytes:
    """`text` as at most MAX_TEXT_BYTES of valid UTF-8."""
    raw = text.encode("utf-8", "replace")
    return raw if len(raw) <= MAX_TEXT_BYTES else raw[:MAX_TEXT_BYTES].decode("utf-8", "ignore").encode()


def decode_code(value: int) -> Code:
    """The code with that number; INTERNAL for one that this version does not know."""
    try:
        return Code(value)
    except ValueError:
        return Code.INTERNAL


def decode_reason(payload: memoryview) -> tuple[Code, str]:
    """The code and sentence of OPEN_ERR, RST or CLOSE."""
    if not 4 <= len(payload) <= 4 + MAX_TEXT_BYTES:
        raise RemoteProtocolError(
            Code.PROTOCOL, f"a reason of {len(payload)} bytes, expected 4 to {4 + MAX_TEXT_BYTES}"
        )
    return decode_code(U32.unpack_from(payload)[0]), printable(str(payload[4:], "utf-8", "replace"))


def has_control(text: str) -> bool:
    """Whether `text` holds a control character, which no name on the wire may."""
    return _CONTROL.search(text) is not None


def printable(text: str) -> str:
    """`text` without control characters: a peer's sentence ends in logs and terminals."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


class Open(NamedTuple):
    """What an OPEN frame says."""

    grant: int  # absolute offset up to which the acceptor may send
    service: str
    caller: str
    connection_id: str


def encode_open(stream: int, body: Open) -> bytes:
    """An OPEN frame. ValueError when a name is one that the peer would close the tunnel for."""
    parts = [U64.pack(body.grant)]
    for name in (body.service, body.caller, body.connection_id):
        raw = name.encode()
        if len(raw) > MAX_NAME_BYTES:
            raise ValueError(f"a name of {len(raw)} bytes in OPEN, at most {MAX_NAME_BYTES} fit: {name[:40]!r}...")
        if has_control(name):
            raise ValueError(f"a name with control characters in OPEN: {name[:40]!r}")
        parts += (bytes((len(raw),)), raw)
    return encode(FrameType.OPEN, stream, b"".join(parts))


def decode_open(payload: memoryview) -> Open:
    """What an OPEN frame says; RemoteProtocolError when its lengths or characters do not fit."""
    try:
        (grant,) = U64.unpack_from(payload)
        names, at = [], 8
        for _ in range(3):
            end = at + 1 + payload[at]
            if end > len(payload):
                raise IndexError
            names.append(str(payload[at + 1 : end], "utf-8"))
            at = end
    except (IndexError, UnicodeDecodeError, StructError) as error:
        raise RemoteProtocolError(Code.PROTOCOL, "an OPEN frame that is cut short or not UTF-8") from error
    if at != len(payload):
        raise RemoteProtocolError(Code.PROTOCOL, f"an OPEN frame with {len(payload) - at} bytes too many")
    if any(map(has_control, names)):
        raise RemoteProtocolError(Code.PROTOCOL, "an OPEN frame with control characters in a name")
    return Open(grant, *names)


def decode_u64(payload: memoryview, what: str) -> int:
    """The only field of CREDIT, ACK, OPEN_OK, PING and PONG."""
    if len(payload) != 8:
        raise RemoteProtocolError(Code.PROTOCOL, f"{what} of {len(payload)} bytes, expected 8")
    return int(U64.unpack(payload)[0])


class FrameDecoder:
    """Finds frames in pieces of bytes of any size.

    `feed` yields frames whose payloads borrow from the piece or from an internal buffer: they are valid until the next
    frame is asked for. At most one incomplete frame is kept.
    """

    __slots__ = ("_max_payload", "_partial", "taken")

    def __init__(self, max_payload: int = MAX_FRAME_PAYLOAD) -> None:
        self._max_payload = max_payload
        self._partial = bytearray()
        self.taken = 0  # bytes of the piece being fed, up to the end of the frame that was yielded last

    @property
    def buffered(self) -> int:
        """Bytes of the incomplete frame that is kept."""
        return len(self._partial)

    def feed(self, data: memoryview) -> Iterator[Frame]:
        """Yield every frame that `data` completes. RemoteProtocolError for a header above the limits."""
        unpack, maximum, at, end = HEADER.unpack_from, self._max_payload, 0, len(data)
        if self._partial:
            at = self._take(data, 0, HEADER_SIZE)
            if len(self._partial) < HEADER_SIZE:
                return
            kind, flags, reserved, stream, length = unpack(self._partial)
            self._check(reserved, length, maximum, kind)
            at = self._take(data, at, HEADER_SIZE + length)
            if len(self._partial) < HEADER_SIZE + length:
                return
            whole, self._partial = self._partial, bytearray()
            self.taken = at
            yield kind, flags, stream, memoryview(whole)[HEADER_SIZE:]
        while end - at >= HEADER_SIZE:
            kind, flags, reserved, stream, length = unpack(data, at)
            if reserved or length > maximum:
                self._check(reserved, length, maximum, kind)
            stop = at + HEADER_SIZE + length
            if stop > end:
                break
            self.taken = stop
            yield kind, flags, stream, data[at + HEADER_SIZE : stop]
            at = stop
        if at < end:
            self._partial += data[at:]

    def _take(self, data: memoryview, at: int, size: int) -> int:
        """Fill the partial frame up to `size` bytes from `data[at:]`; where it stopped."""
        stop = min(len(data), at + max(0, size - len(self._partial)))
        self._partial += data[at:stop]
        return stop

    @staticmethod
    def _check(reserved: int, length: int, maximum: int, kind: int) -> None:
        if length > maximum:
            raise RemoteProtocolError(Code.TOO_LARGE, f"a frame of type {kind} with {length} bytes, at most {maximum}")
        if reserved:
            raise RemoteProtocolError(Code.PROTOCOL, f"a frame of type {kind} with reserved bits set")
