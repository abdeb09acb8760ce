"""One stream of a tunnel as an asyncio transport.

It differs from a socket's transport in three ways. `data_received` hands out a memoryview that is borrowed until it
returns. `connection_lost` gets the reason as a StreamReset, StreamRefused or TunnelLost. A protocol may have a method
`stream_accepted`, called when the peer has accepted a stream that was opened without waiting, and a method
`pieces_received`, called with what one read brought in several frames: it takes as many bytes from the front as it can
pass on at once, and returns how many; the rest comes by `data_received`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from protocol.constants import Code
from protocol.errors import ProtocolError

if TYPE_CHECKING:
    from protocol.aio.tunnel import Tunnel


class StreamTransport(asyncio.Transport):
    """One stream. Made by `Tunnel.start_open`, `Tunnel.open` and `IncomingStream.accept`."""

    __slots__ = (
        "_closing",
        "_eof",
        "_eof_told",
        "_full",
        "_held",
        "_lost",
        "_paused",
        "_protocol",
        "_tunnel",
        "bytes_in",
        "bytes_out",
        "id",
        "opened_at",
    )

    def __init__(
        self, tunnel: Tunnel, stream: int, protocol: asyncio.BaseProtocol | None, info: Mapping[str, Any]
    ) -> None:
        super().__init__(dict(info))
        self._tunnel = tunnel
        self.id = stream
        self._protocol = cast("asyncio.Protocol | None", protocol)
        self._paused = protocol is None
        self._held: deque[bytes] = deque()  # received while reading was paused; bounded by the granted credit
        self._eof = False
        self._eof_told = False
        self._closing = False
        self._full = False
        self._lost = False
        self.bytes_in = 0
        self.bytes_out = 0
        self.opened_at = monotonic()

    # ---- what protocols call ------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes. Anything but `bytes` is copied, since it may change before it leaves."""
        if self._closing or self._lost or not data:
            return
        self.bytes_out += len(data)
        if not self._tunnel.stream_write(self.id, data if type(data) is bytes else bytes(data)) and not self._full:
            self._full = True
            if self._protocol is not None:
                self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        """Streams half-close."""
        return True

    def write_eof(self) -> None:
        """No more data from this end."""
        if not self._closing and not self._lost:
            self._tunnel.stream_finish(self.id)

    def close(self) -> None:
        """Send what is queued, then drop the stream. Incoming data is discarded from now on. Idempotent."""
        if self._closing or self._lost:
            return
        self._closing = True
        if self._held:
            # Given back, so that a peer that sends before it reads can go on to read what is flushed here.
            self._tunnel.consumed(self.id, sum(map(len, self._held)))
            self._held.clear()
        self._tunnel.stream_close(self.id)

    def abort(self) -> None:
        """Drop the stream at once."""
        self.reset(Code.CANCELLED, "aborted")

    def reset(self, code: Code, text: str) -> None:
        """Drop the stream at once and tell the peer why. Idempotent."""
        if not self._lost:
            self._closing = True
            self._tunnel.stream_reset(self.id, code, text)
            self.lose(None)

    def is_closing(self) -> bool:
        """asyncio.Transport."""
        return self._closing or self._lost

    def is_reading(self) -> bool:
        """asyncio.Transport."""
        return not self._paused

    def pause_reading(self) -> None:
        """Hold what arrives; the peer's credit runs dry. Idempotent."""
        self._paused = True

    def resume_reading(self) -> None:
        """Hand out what was held, then go on. Idempotent."""
        if self._paused and not self._lost:
            self._paused = False
            if self._held or (self._eof and not self._eof_told):
                self._tunnel.loop.call_soon(self._tunnel.guard, self, self._deliver_held)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand the stream to another protocol."""
        self._protocol = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The stream's protocol."""
        assert self._protocol is not None, "the stream has not been accepted yet"
        return self._protocol

    def get_write_buffer_size(self) -> int:
        """Bytes that wait for credit or their turn."""
        return self._tunnel.session.queued(self.id)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The session's limits hold for every stream; a stream has none of its own."""

    # ---- what the tunnel calls ----------------------------------------------------------------------------------

    def receive(self, pieces: list[memoryview]) -> int:
        """Take what one read brought; how many bytes were passed on and may be credited."""
        moved = 0
        if len(pieces) > 1 and not (self._closing or self._paused or self._held):
            together = getattr(self._protocol, "pieces_received", None)
            if together is not None:
                moved = together(pieces)
                self.bytes_in += moved
                pieces = _after(moved, pieces)
        for data in pieces:
            moved += self._receive(data)
        return moved

    def _receive(self, data: memoryview) -> int:
        size = len(data)
        self.bytes_in += size
        if self._closing:
            return size
        if self._paused or self._held:
            self._held.append(bytes(data))
            return 0
        assert self._protocol is not None
        self._protocol.data_received(data)  # type: ignore[arg-type]  # borrowed memoryview, see the module's docstring
        return size

    def receive_eof(self) -> None:
        """The peer finished."""
        self._eof = True
        if not self._held and not self._paused and not self._closing:
            self._deliver_eof()

    def accepted(self) -> None:
        """The peer accepted the stream that this end opened."""
        handler = getattr(self._protocol, "stream_accepted", None)
        if handler is not None:
            handler()

    def writable_again(self) -> None:
        """Room for more."""
        if self._full:
            self._full = False
            if self._protocol is not None and not self._closing:
                self._protocol.resume_writing()

    def lose(self, error: ProtocolError | None) -> None:
        """The stream is gone; the protocol hears it once, from the loop."""
        if self._lost:
            return
        self._lost = True
        self._tunnel.forget(self.id)
        self._held.clear()
        self._tunnel.loop.call_soon(self._say_lost, error)

    def _say_lost(self, error: ProtocolError | None) -> None:
        if error is None and not self._closing:
            self._tunnel.guard(self, self._deliver_eof)
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            self._tunnel.guard(self, lambda: protocol.connection_lost(error))

    def _deliver_held(self) -> None:
        while self._held and not self._paused and not self._lost:
            data = self._held.popleft()
            assert self._protocol is not None
            self._protocol.data_received(memoryview(data))  # type: ignore[arg-type]
            self._tunnel.consumed(self.id, len(data))
        if not self._held and not self._paused and not self._lost and not self._closing:
            self._deliver_eof()

    def _deliver_eof(self) -> None:
        """Pass the peer's FIN on, once."""
        if self._eof and not self._eof_told and self._protocol is not None:
            self._eof_told = True
            if not self._protocol.eof_received():
                self.close()


class IncomingStream:
    """A stream that the peer asks for: `accept` it or `refuse` it, once. Both are harmless when it is gone."""

    __slots__ = ("_transport", "caller", "connection_id", "service", "tunnel")

    def __init__(
        self, tunnel: Tunnel, transport: StreamTransport, service: str, caller: str, connection_id: str
    ) -> None:
        self.tunnel = tunnel
        self.service = service
        self.caller = caller
        self.connection_id = connection_id
        self._transport = transport

    @property
    def cancelled(self) -> bool:
        """Whether the peer no longer waits."""
        return self._transport.is_closing()

    def accept(self, protocol: asyncio.BaseProtocol) -> StreamTransport:
        """Take the stream: `protocol` gets connection_made at once, and the data that came early from the loop."""
        transport = self._transport
        if transport.is_closing():
            protocol.connection_made(transport)
            self.tunnel.loop.call_soon(protocol.connection_lost, None)
            return transport
        transport.set_protocol(protocol)
        self.tunnel.stream_accept(transport.id)
        transport.resume_reading()  # first, since the protocol may pause it in connection_made
        protocol.connection_made(transport)
        return transport

    def refuse(self, code: Code, text: str) -> None:
        """Answer no, and why."""
        if not self._transport.is_closing():
            self.tunnel.stream_refuse(self._transport.id, code, text)
            self._transport.lose(None)


def _after(count: int, pieces: list[memoryview]) -> list[memoryview]:
    """What follows the first `count` bytes."""
    left = []
    for piece in pieces:
        if count < len(piece):
            left.append(piece[count:])
        count -= min(count, len(piece))
    return left
