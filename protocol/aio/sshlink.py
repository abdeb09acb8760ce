"""SSH over a WebSocket link: what asyncssh takes for its transport, and the link's owner.

Message borders mean nothing. What asyncssh writes in one turn leaves as one message; what arrives is given to it as the
link hands it on, 1 KiB fragments joined, and of a peer that is known in the turn in which it was read. A full link
stops the channels, not asyncssh: see `Wire.room`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from protocol.aio.link import Link
from protocol.defaults import KIB

if TYPE_CHECKING:
    from protocol.aio.ssh import Wire

WRITE_AT: Final = 64 * KIB  # so much leaves before the turn is over
MOST_UNSENT: Final = 4 * 1024 * KIB  # answers to a peer that reads nothing: channel data waits outside


class SshLink(asyncio.Transport):
    """Joins a connection to a link whose opening handshake is done."""

    def __init__(self, link: Link, wire: Wire, *, remote: str) -> None:
        host, _, port = remote.rpartition(":")
        super().__init__({"peername": (host, int(port) if port.isdigit() else 0)})
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._wire = wire
        self._out: list[bytes] = []
        self._size = 0
        self._due = False
        self._in: list[bytes] = []
        self.heard_at = self._loop.time()
        self.bytes_in = 0
        self.bytes_out = 0
        self._unsent = 0
        self._blocked_at: float | None = None
        link.owner = self
        wire.room = self._room
        wire.connection_made(self)

    # ---- the link's owner ---------------------------------------------------------------------------------------

    def link_received(self, data: memoryview) -> None:
        if self._wire.known and not self._in:
            self._feed(bytes(data))
            return
        # In the next turn: who is refused in the midst of its words would see a reset, and not what it is told.
        if not self._in:
            self._loop.call_soon(self._feed_held)
        self._in.append(bytes(data))

    def _feed_held(self) -> None:
        pieces, self._in = self._in, []
        if pieces:
            self._feed(b"".join(pieces))

    def _feed(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        self.bytes_in += len(data)
        self._wire.feed(data)

    def link_writable(self) -> None:
        self._unsent = 0
        self._blocked_at = None
        self._wire.pump()

    def link_lost(self, reason: str) -> None:
        self._feed_held()
        lost = partial(self._wire.connection_lost, ConnectionError(reason))
        if self._wire.known:
            lost()
        else:  # asyncssh judges a peer's first words in a task: what it finds says more than that the link is gone
            self._loop.call_soon(self._loop.call_soon, lost)

    @property
    def blocked_for(self) -> float:
        """How long the peer has taken nothing of what waits for it, seconds."""
        return 0.0 if self._blocked_at is None else self._loop.time() - self._blocked_at

    def _room(self) -> bool:
        return self._link.writable and self._size < WRITE_AT

    # ---- asyncssh's transport -----------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writelines((bytes(data),))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        """The same, for bytes in pieces."""
        if self._link.closing:
            return
        for piece in list_of_data:
            self._out.append(piece)
            self._size += len(piece)
        if self._size >= WRITE_AT:
            self.flush()
        elif not self._due:
            self._due = True
            self._loop.call_soon(self._flush_turn)

    def _flush_turn(self) -> None:
        self._due = False
        self.flush()
        self._wire.pump()

    def flush(self) -> None:
        """Hand what was written to the link."""
        if not self._out:
            return
        out, self._out = self._out, []
        size, self._size = self._size, 0
        self.bytes_out += size
        self._link.write(out)
        if not self._link.writable:
            self._unsent += size
            if self._blocked_at is None:
                self._blocked_at = self._loop.time()
            if self._unsent > MOST_UNSENT:
                self._link.abort("the peer reads nothing, and what must be answered piles up")

    def close(self) -> None:
        self.flush()
        self._link.close("closed")

    def abort(self) -> None:
        """asyncssh calls this for every end, also right after it has said why: what it said still leaves."""
        self.flush()
        self._link.close("the SSH connection ended")

    def is_closing(self) -> bool:
        return self._link.closing

    def get_write_buffer_size(self) -> int:
        return self._size

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The link's own hold."""

    def get_protocol(self) -> Any:
        return self._wire
