"""How many TLS records a peer has sent, read off their headers, which are not encrypted.

A record that brings nothing costs no less than one that does. TLS 1.3 lets a peer ask for new keys in 27 bytes, as
often as it likes, which is a hundred times the work that as many bytes of content are, and OpenSSL neither bounds nor
tells of it: a single megabyte stops a loop for a second. So records are counted as they come and again as they are
decrypted, and few of them may hold nothing.
"""

from __future__ import annotations

from typing import Final

_HEADER_BYTES: Final = 5
_LEAST_BYTES: Final = 22  # of an encrypted record
PIECE_RECORDS: Final = 256  # looked at in one go: what so many that hold nothing cost is little
SPARE_RECORDS: Final = 64  # that may hold nothing: tickets, new keys
SPARE_SHARE: Final = 64  # and one of so many that hold something


class RecordCounter:
    """Of one direction. `begun`: records whose header has come."""

    __slots__ = ("_head", "_left", "begun")

    def __init__(self) -> None:
        self.begun = 0
        self._left = 0  # bytes of the last record that are still to come
        self._head = b""  # of a header that has come in part

    def only(self, data: memoryview) -> bool:
        """Whether that is one record, and nothing else; it is counted then."""
        size = len(data)
        if self._left or self._head or size < _LEAST_BYTES or size != _HEADER_BYTES + (data[3] << 8 | data[4]):
            return False
        self.begun += 1
        return True

    def piece(self, data: memoryview, most: int) -> int:
        """How many bytes to take of `data`: at most `most`, of at most PIECE_RECORDS records, which are counted."""
        size = min(len(data), most)
        at, head = self._left, self._head
        if head:
            missing = _HEADER_BYTES - len(head)
            head += data[: min(missing, size)]
            if len(head) < _HEADER_BYTES:
                self._head = head
                return size
            at = missing + (head[3] << 8 | head[4])
            self._head = b""
            self.begun += 1
        last = self.begun + PIECE_RECORDS
        while at + _HEADER_BYTES <= size:
            if self.begun >= last:
                self._left = 0
                return at
            at += _HEADER_BYTES + (data[at + 3] << 8 | data[at + 4])
            self.begun += 1
        if at < size:
            self._head = bytes(data[at:size])
            at = size
        self._left = at - size
        return size

    def wasteful(self, filled: int, waiting: int) -> bool:
        """Whether too many hold nothing: `filled` of them held something, `waiting` bytes are still to be decrypted."""
        return self.begun - waiting // _LEAST_BYTES - filled > SPARE_RECORDS + filled // SPARE_SHARE
