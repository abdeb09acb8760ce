"""WebSocket data framing (RFC 6455 §5) for links: binary messages in, binary messages out.

The opening handshake is the `websockets` library's. After it a link moves bulk data, for which that library copies each
payload four times; here payload pieces are handed on as they arrive, borrowed, in whatever sizes they come.
Extensions are never negotiated, text is refused, control frames are bounded by the RFC's 125 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final

from websockets.speedups import apply_mask

MAX_MESSAGE_FRAME: Final = 16 * 1024 * 1024  # of one WebSocket frame; ours stay far below
MAX_HEADER: Final = 14  # with a mask and a length of eight bytes
NO_MASK: Final = b"\0\0\0\0"
_CLOSE_CODES: Final = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})
_U16: Final = struct.Struct("!BBH")
_U64: Final = struct.Struct("!BBQ")
_FRAGMENT: Final = struct.Struct("!BBH4s")  # the header of a masked frame of 126 to 65535 bytes


class Op(IntEnum):
    """Opcodes."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


_BINARY: Final = Op.BINARY
_FIRST_BINARY: Final = 0x02  # the first fragment of several
_WHOLE_BINARY: Final = 0x80 | Op.BINARY


class WebSocketError(Exception):
    """The peer broke RFC 6455; `code` is the status to close with."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def header(op: Op, length: int, mask: bytes | None) -> bytes:
    """The header of an unfragmented frame; `mask` is the key of a client's frame."""
    first, bit = 0x80 | op, 0 if mask is None else 0x80
    if length < 126:
        head = bytes((first, bit | length))
    elif length < 65536:
        head = _U16.pack(first, bit | 126, length)
    else:
        head = _U64.pack(first, bit | 127, length)
    return head if mask is None else head + mask


def frame(op: Op, payload: bytes, mask: bytes | None) -> bytes:
    """A whole small frame, payload masked."""
    return header(op, len(payload), mask) + (payload if mask is None else apply_mask(payload, mask))


def _check_close(payload: bytes) -> None:
    """RFC 6455 §7.4: a status that may stand on the wire, and a reason in UTF-8; or nothing."""
    if not payload:
        return
    status = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not (3000 <= status < 5000 or status in _CLOSE_CODES):
        raise WebSocketError(1002, "a malformed close frame")
    try:
        payload[2:].decode()
    except UnicodeDecodeError as error:
        raise WebSocketError(1007, "a close frame whose reason is not UTF-8") from error


class WebSocketDecoder:
    """Finds payloads in bytes of any cut.

    Yields (opcode, payload): pieces of binary messages as BINARY, control frames whole. Payloads are borrowed until the
    next one is asked for.
    """

    __slots__ = ("_control", "_expect_mask", "_in_message", "_left", "_mask", "_op", "_partial")

    def __init__(self, *, expect_mask: bool) -> None:
        self._expect_mask = expect_mask
        self._partial = bytearray()  # an incomplete header
        self._control = bytearray()  # an incomplete control payload
        self._left = 0  # payload bytes still to come of the current frame
        self._mask = NO_MASK
        self._op: Op = Op.BINARY
        self._in_message = False

    def whole(self, data: memoryview) -> memoryview | None:
        """The payload where `data` is one small message that no mask changes; None, and nothing done, if not.

        Requests and their answers come so over a private link, in a read of their own: they need no parser.
        """
        size = len(data)
        if self._left or self._in_message or self._partial or size < 5 or data[0] != _WHOLE_BINARY:
            return None
        length, at = data[1], 2
        if self._expect_mask:
            length ^= 0x80
        if length == 126:
            length, at = data[2] << 8 | data[3], 4
        elif length > 126:
            return None
        if self._expect_mask:
            at += 4
            if bytes(data[at - 4 : at]) != NO_MASK:
                return None
        return data[at:] if 0 < length == size - at else None

    def feed(self, data: memoryview) -> Iterator[tuple[Op, memoryview]]:
        """Yield what `data` holds. WebSocketError when the peer breaks a rule."""
        while data:
            if not self._left:
                if self._expect_mask and (self._in_message or data[0] == _FIRST_BINARY) and not self._partial:
                    joined, data = self._fragments(data)
                    if joined:
                        yield _BINARY, memoryview(joined)
                    if not data:
                        return
                rest = self._whole_header(data)
                data = self._header(data) if rest is None else rest
                if self._nothing_yet():
                    continue
            left = self._left
            if len(data) <= left:
                piece, data = data, data[len(data) :]
            else:
                piece, data = data[:left], data[left:]
            self._left = left - len(piece)
            if self._mask != NO_MASK and piece:
                masked = apply_mask(piece, self._mask)
                turn = len(piece) % 4
                self._mask = self._mask[turn:] + self._mask[:turn]
                piece = memoryview(masked)
            if self._op is _BINARY:
                yield _BINARY, piece
                continue
            self._control += piece
            if not self._left:
                whole, self._control = bytes(self._control), bytearray()
                op, self._op = self._op, Op.BINARY
                if op is Op.CLOSE:
                    _check_close(whole)
                yield op, memoryview(whole)

    def _nothing_yet(self) -> bool:
        """Whether there is no payload to hand on: no whole header, or an empty piece of a message."""
        return not self._left and (bool(self._partial) or self._op is _BINARY)

    def _fragments(self, data: memoryview) -> tuple[bytes, memoryview]:
        """Whole small masked fragments of binary messages in a row: their payloads joined, and what follows them.

        A Go client cuts its messages into fragments of 1 KiB, a thousand for each MiB. What is not such a fragment, or
        not whole, is left for the parser.
        """
        at, end, inside = 0, len(data), self._in_message
        pieces: list[bytes] = []
        while end - at >= _FRAGMENT.size:
            first, second, length, mask = _FRAGMENT.unpack_from(data, at)
            body = at + _FRAGMENT.size
            stop = body + length
            if second != 0xFE or stop > end or first & 0x7F != (0 if inside else Op.BINARY) or mask == NO_MASK:
                break
            pieces.append(apply_mask(data[body:stop], mask))
            inside = first < 0x80
            at = stop
        self._in_message = inside
        return b"".join(pieces), data[at:]

    def _whole_header(self, data: memoryview) -> memoryview | None:
        """Read the header that our own links send, a whole binary message's; None, and nothing done, for any other."""
        if len(data) < MAX_HEADER or data[0] != _WHOLE_BINARY or self._in_message or self._partial:
            return None
        length, size = data[1], 2
        if (length >= 0x80) is not self._expect_mask:
            return None
        length &= 0x7F
        if length == 126:
            length, size = data[2] << 8 | data[3], 4
        elif length == 127:
            length, size = _U64.unpack_from(data)[2], 10
        if not 0 < length <= MAX_MESSAGE_FRAME:
            return None
        if self._expect_mask:
            size += 4
            self._mask = bytes(data[size - 4 : size])
        self._op = _BINARY
        self._left = length
        return data[size:]

    def _header(self, data: memoryview) -> memoryview:
        """Read a header off `data`; what follows it. Sets `_left` once the header is whole."""
        if self._partial:
            had = len(self._partial)
            self._partial += data[: MAX_HEADER - had]
            parsed = self._parse(memoryview(bytes(self._partial)))
            if parsed is None:
                return data[MAX_HEADER - had :]
            self._partial = bytearray()
            return data[parsed - had :]
        parsed = self._parse(data)
        if parsed is None:
            self._partial += data
            return data[len(data) :]
        return data[parsed:]

    def _parse(self, data: memoryview) -> int | None:
        """Take a header at the start of `data`; its size, None while it is incomplete."""
        if len(data) < 2:
            return None
        first, second = data[0], data[1]
        self._check(first, second)
        length, size = second & 0x7F, 2
        if length == 126:
            size = 4
        elif length == 127:
            size = 10
        masked = size
        if second & 0x80:
            size += 4
        if len(data) < size:
            return None
        if length == 126:
            length = _U16.unpack_from(data)[2]
        elif length == 127:
            length = _U64.unpack_from(data)[2]
        if length > MAX_MESSAGE_FRAME:
            raise WebSocketError(1009, f"a frame of {length} bytes, at most {MAX_MESSAGE_FRAME} are taken")
        self._mask = bytes(data[masked:size]) if second & 0x80 else NO_MASK
        op = Op(first & 0x0F)
        self._op = Op.BINARY if op is Op.CONTINUATION else op
        if op < Op.CLOSE:
            self._in_message = not first & 0x80
        self._left = length
        return size

    def _check(self, first: int, second: int) -> None:
        op, final = first & 0x0F, bool(first & 0x80)
        if first & 0x70:
            raise WebSocketError(1002, "reserved bits set, though no extension was agreed")
        if bool(second & 0x80) is not self._expect_mask:
            raise WebSocketError(1002, "a client's frame without mask" if self._expect_mask else "a masked frame")
        if op >= Op.CLOSE:
            if op > Op.PONG or not final or second & 0x7F > 125:
                raise WebSocketError(1002, f"a malformed control frame (opcode {op})")
        elif op == Op.TEXT:
            raise WebSocketError(1003, "a text message; this subprotocol is binary")
        elif op > Op.BINARY:
            raise WebSocketError(1002, f"unknown opcode {op}")
        elif (op == Op.CONTINUATION) is not self._in_message:
            raise WebSocketError(1002, "a continuation out of place, or a message inside another")
