"""Where a body ends. Bodies are relayed as the bytes they came in; these scanners only find the end.

`feed(data)` returns what to pass on and how much of `data` belonged to the message; `done` says that it ended there.
Chunked bodies pass verbatim, their trailers apart: those are held until they are whole, bounded, and stripped of
names that must not pass (`gateway.fields`), because a server may merge trailers into the header.
"""

from __future__ import annotations

import re
from typing import Final

from gateway.errors import AnswerError, RequestError
from gateway.fields import allowed_in_trailer
from gateway.head import Framing
from protocol.defaults import KIB

Buffer = bytes | memoryview

_LENGTH: Final = Framing.LENGTH
MAX_CHUNK_LINE_BYTES: Final = 256  # a size and an extension; nobody sends extensions
MAX_TRAILER_BYTES: Final = 8 * KIB
MAX_TRAILER_FIELDS: Final = 50

_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e]*)?")
_TRAILER_LINE: Final = re.compile(rb"([A-Za-z0-9!#$%&'*+.^_`|~-]+):[\t\x20-\x7e\x80-\xff]*")

Blame = type[RequestError] | type[AnswerError]


class Counted:
    """A body of known length."""

    __slots__ = ("done", "left")

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = length == 0

    @property
    def at_boundary(self) -> bool:
        return False

    def feed(self, data: Buffer) -> tuple[Buffer, int]:
        size = len(data)
        if size < self.left:
            self.left -= size
            return data, size
        taken = self.left
        self.left = 0
        self.done = True
        return (data, size) if taken == size else (data[:taken], taken)


class UntilClose:
    """A response body that ends with its connection; `done` never comes."""

    __slots__ = ()
    done = False
    at_boundary = False

    def feed(self, data: Buffer) -> tuple[Buffer, int]:
        return data, len(data)


class Chunked:
    """A chunked body. `blame` is the exception for malformed ones: the caller's fault or the apiserver's."""

    __slots__ = ("_blame", "_left", "_line", "_trailer", "done")

    def __init__(self, blame: Blame) -> None:
        self._blame = blame
        self._line = b""  # a chunk line that is not whole yet
        self._left = 0  # of the chunk and its CRLF; 0 means that a chunk line is next
        self._trailer: bytearray | None = None
        self.done = False

    @property
    def at_boundary(self) -> bool:
        """Between two chunks: a last chunk could be put here."""
        return not self._left and not self._line and self._trailer is None

    def feed(self, data: Buffer) -> tuple[Buffer, int]:
        pos, size = 0, len(data)
        while pos < size:
            if self._trailer is not None:
                return self._end(data, pos)
            if self._left:
                pos = self._skip(data, pos, size)
                continue
            # One slice a chunk line; what is behind it in the slice is looked at again in place.
            piece = bytes(data[pos : pos + MAX_CHUNK_LINE_BYTES])
            line = self._line + piece if self._line else piece
            end = line.find(b"\r\n")
            if end < 0:
                if len(line) >= MAX_CHUNK_LINE_BYTES or (b"\n" in line) or b"\r" in line[:-1]:
                    raise self._blame("the line before a chunk is too long, or holds a bare CR or LF")
                self._line = line
                return data, size
            matched = _CHUNK_LINE.fullmatch(line, 0, end)
            if matched is None:
                raise self._blame("the size of a chunk is not a plain hexadecimal number")
            pos += end + 2 - len(self._line)
            self._line = b""
            length = int(matched[1], 16)
            if length:
                self._left = length + 2
            else:
                self._trailer = bytearray()
        return data, size

    def _skip(self, data: Buffer, pos: int, size: int) -> int:
        """Walk over chunk bytes, checking the CRLF behind them."""
        left = self._left
        if left > 2:
            step = min(left - 2, size - pos)
            pos += step
            left -= step
        while left <= 2 and left and pos < size:
            if data[pos] != (13 if left == 2 else 10):
                raise self._blame("a chunk is longer than its size says")
            pos += 1
            left -= 1
        self._left = left
        return pos

    def _end(self, data: Buffer, pos: int) -> tuple[Buffer, int]:
        held = self._trailer
        assert held is not None
        size = len(data)
        if not held and bytes(data[pos : pos + 2]) == b"\r\n":  # no trailers: verbatim
            self.done = True
            return data[: pos + 2] if pos + 2 < size else data, pos + 2
        before = len(held)
        held += data[pos : pos + MAX_TRAILER_BYTES + 4]
        end = 2 if held.startswith(b"\r\n") else held.find(b"\r\n\r\n") + 4
        if end < 4 and not held.startswith(b"\r\n"):
            if len(held) > MAX_TRAILER_BYTES:
                raise self._blame(f"the trailers are larger than {MAX_TRAILER_BYTES} bytes")
            if held.count(b"\n") != held.count(b"\r\n"):
                raise self._blame("a trailer line ends with LF alone")
            return data[:pos], size
        self.done = True
        consumed = pos + end - before
        return bytes(data[:pos]) + self._filtered(bytes(held[:end])), consumed

    def _filtered(self, trailer: bytes) -> bytes:
        if trailer == b"\r\n":
            return trailer
        lines = trailer[:-4].split(b"\r\n")
        if len(lines) > MAX_TRAILER_FIELDS:
            raise self._blame(f"there are more than {MAX_TRAILER_FIELDS} trailers")
        kept = []
        for line in lines:
            matched = _TRAILER_LINE.fullmatch(line)
            if matched is None:
                raise self._blame("a trailer is not a header field")
            if allowed_in_trailer(matched[1].lower()):
                kept.append(line + b"\r\n")
        return b"".join(kept) + b"\r\n"


Scanner = Counted | Chunked | UntilClose


def scanner(framing: Framing, length: int, blame: Blame) -> Scanner | None:
    """The scanner of a body, or None where there is none."""
    if framing is _LENGTH:
        return Counted(length) if length else None
    if framing is Framing.CHUNKED:
        return Chunked(blame)
    return UntilClose() if framing is Framing.UNTIL_CLOSE else None
