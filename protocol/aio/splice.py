"""Relays bytes between two transports, both ways, with back-pressure and half-close.

For streams whose content nobody reads: passthrough, declared services, forwards. When one side has finished cleanly the
other socket is not closed at once: its peer may still be sending, and would get a reset that discards what it has not
read yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from protocol.aio.buffers import shared_buffer
from protocol.defaults import CALLER_IDLE

LINGER: Final = 30.0  # seconds in which a peer that was told the end may go by itself, once it has taken everything


@dataclass(frozen=True, slots=True)
class Transferred:
    """What a splice moved. `error` is why it ended, None when both ends finished."""

    forward: int  # from the first end to the second
    backward: int
    error: Exception | None


class SpliceEnd(asyncio.BufferedProtocol):
    """One end of a splice: attach it to any transport, give it its `peer`, and it relays.

    Works under transports that deliver borrowed memoryviews (streams) and those that fill a buffer (sockets). What
    arrives before the peer stands is held up by pausing the reader.
    """

    def __init__(
        self, on_finished: Callable[[SpliceEnd], None], on_lost: Callable[[SpliceEnd, Exception | None], None]
    ) -> None:
        self._buffer = shared_buffer(asyncio.get_running_loop())
        self._on_finished = on_finished
        self._on_lost = on_lost
        self._early: list[bytes] = []
        self._early_eof = False
        self.transport: asyncio.Transport | None = None
        self.peer: SpliceEnd | None = None
        self.received = 0
        self._lingers = False

    def begin(self) -> None:
        """Start to relay what this end receives to its peer, whose transport stands."""
        assert self.transport is not None
        assert self.peer is not None
        assert self.peer.transport is not None
        self.transport.resume_reading()  # before the writes below, which may pause it again
        early, self._early = self._early, []
        for data in early:
            self.peer.transport.write(data)
        if self._early_eof:
            self.eof_received()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self.peer is None or self.peer.transport is None:
            self.transport.pause_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(self._buffer[:nbytes])

    def data_received(self, data: memoryview) -> None:
        """Borrowed bytes, as stream transports deliver them."""
        if self._lingers:
            return
        self.received += len(data)
        if self.peer is None or self.peer.transport is None:
            self._early.append(bytes(data))
            return
        self.peer.transport.write(bytes(data))

    def linger(self) -> None:
        """Send what is queued and the end; drop what still comes until the peer has gone."""
        transport = self.transport
        assert transport is not None
        if transport.is_closing() or transport.get_extra_info("socket") is None:
            transport.close()  # a stream discards by itself
            return
        self._lingers = True
        transport.write_eof()
        transport.resume_reading()

    def eof_received(self) -> bool:
        if self._lingers:
            return False  # the transport closes when it has sent the rest
        if self.peer is None or self.peer.transport is None:
            self._early_eof = True
            return True
        if self.peer.transport.can_write_eof():
            self.peer.transport.write_eof()
        else:
            self.peer.transport.close()
        self._on_finished(self)
        return True

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._on_lost(self, exc)


class Splice:
    """Two joined ends. `done` is set when both transports are gone.

    Attach `first` and `second` to transports in either order, then call `start`.
    """

    def __init__(self, on_done: Callable[[Transferred], None] | None = None) -> None:
        self.first = SpliceEnd(self._finish, self._lost)
        self.second = SpliceEnd(self._finish, self._lost)
        self.done: asyncio.Future[Transferred] = asyncio.get_running_loop().create_future()
        self._on_done = on_done
        self._error: Exception | None = None
        self._left = 2
        self._finished: set[SpliceEnd] = set()
        self._late: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Both transports stood: relay, or drop the one whose other has gone meanwhile."""
        if self.first.transport is None or self.second.transport is None:
            self.abort()
            return
        self.first.peer, self.second.peer = self.second, self.first
        self.first.begin()
        self.second.begin()

    def abort(self) -> None:
        """Drop both ends."""
        for end in (self.first, self.second):
            if end.transport is not None:
                end.transport.abort()

    def _finish(self, end: SpliceEnd) -> None:
        """An end has sent all it had. A socket does not close itself when both directions are done."""
        self._finished.add(end)
        if len(self._finished) == 2:
            for done in (self.first, self.second):
                if done.transport is not None:
                    done.transport.close()

    def _lost(self, end: SpliceEnd, error: Exception | None) -> None:
        self._left -= 1
        self._error = self._error or error
        other = self.second if end is self.first else self.first
        if other.transport is not None:
            # An orderly end flushes what was relayed; a broken one must not look orderly to the other side.
            if error is not None:
                other.transport.abort()
                return
            if other in self._finished:
                other.transport.close()
            else:
                other.linger()
            self._wait_for(other.transport, asyncio.get_running_loop().time() + CALLER_IDLE)
        elif self._late is not None:
            self._late.cancel()
        if self._left == 0 and not self.done.done():
            result = Transferred(self.first.received, self.second.received, self._error)
            self.done.set_result(result)
            if self._on_done is not None:
                self._on_done(result)

    def _wait_for(self, transport: asyncio.Transport, ends: float) -> None:
        """What was relayed may still be read, as by someone who pages through it; but not for ever."""
        loop = asyncio.get_running_loop()

        def look() -> None:
            if transport.get_write_buffer_size() and loop.time() < ends:
                self._wait_for(transport, ends)
            else:
                transport.abort()

        self._late = loop.call_later(min(LINGER, CALLER_IDLE), look)
