"""A link: the WebSocket that carries a tunnel now, once its opening handshake is done.

It moves bytes between a transport and its owner (the handshake first, then the tunnel) and keeps the WebSocket's own
rules: pings answered, close answered, masks. Reading goes through the loop's shared buffer; everything the owner writes
in one turn leaves in one message and one write.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from time import monotonic
from typing import Final, Protocol, cast

from websockets.speedups import apply_mask

from protocol.aio.buffers import shared_buffer
from protocol.aio.busypoll import SHORT, busy_poll
from protocol.aio.wsframes import NO_MASK, Op, WebSocketDecoder, WebSocketError, frame, header
from protocol.defaults import KIB, LINK_FLUSH
from protocol.scheduler import Buffer

WRITE_HIGH: Final = 64 * KIB  # of the transport's own buffer, which the scheduler does not control
WRITE_LOW: Final = 16 * KIB
NOTSENT_LOWAT: Final = 64 * KIB
_TCP_NOTSENT_LOWAT: Final = 25  # Linux; socket has no name for it
_SO_MAX_PACING_RATE: Final = 47  # the same
ANY_PACE: Final = 2**32 - 2  # bytes a second; all ones would say that there is none
PACE_STEP: Final = 1 / 8  # the relative change from which on the kernel is told
LONG_READ: Final = 0.005  # seconds that handling one read may take; a read full of data takes a fraction of that


class LinkOwner(Protocol):
    """Who gets a link's bytes and its end."""

    def link_received(self, data: memoryview) -> None:
        """Bytes of binary messages, borrowed until return."""

    def link_writable(self) -> None:
        """The transport has room again."""

    def link_lost(self, reason: str) -> None:
        """The link is gone; `reason` is for people. Called once."""


class Link(asyncio.BufferedProtocol):
    """The WebSocket frames of one connection.

    Args:
        client: True at the end that dialled: it masks and expects no masks.
        private: whether the connection is TLS. Masking keeps chosen bytes of a browser's script off the wire between
            plain-text intermediaries (RFC 6455 §10.3); inside TLS there are none, so the key is zero there and no byte
            is touched.

    Attributes:
        proven: whether the peer is known: one that was dialled, or one that has proven who it is. The loop polls for
            nobody else, or any stranger could keep a processor busy.
    """

    def __init__(self, *, client: bool, private: bool, owner: LinkOwner) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = shared_buffer(self._loop)
        self._busy_poll = busy_poll(self._loop)
        self._decoder = WebSocketDecoder(expect_mask=not client)
        self._client = client
        self._private = private
        self._transport: asyncio.Transport | None = None
        self._late: asyncio.TimerHandle | None = None
        self._pace = 0.0
        self._resting = False  # reads nothing for a turn of the loop
        self.proven = client
        self.owner = owner
        self.writable = True
        self.closing = False

    # ---- asyncio's side -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over an established connection."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH, low=WRITE_LOW)
        tune(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """asyncio.BufferedProtocol."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """asyncio.BufferedProtocol."""
        self.received(self._buffer[:nbytes])

    def data_received(self, data: memoryview) -> None:
        """Above TLS, which reads by itself."""
        self.received(data)

    def received(self, data: memoryview) -> None:
        """Bytes off the wire."""
        began = monotonic()
        if self.proven and len(data) < SHORT:
            self._busy_poll.message(began)
        self._take(data)
        if monotonic() - began > LONG_READ and not self._resting:
            self._rest()

    def _rest(self) -> None:
        """Stop reading for one turn of the loop, so that other connections get theirs: asyncio would read here up to 32
        times in a row, and a peer that floods with the smallest frames has 20,000 of them in each read."""
        transport = self._transport
        if transport is not None and not self.closing and not transport.is_closing():
            self._resting = True
            transport.pause_reading()
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        self._resting = False
        if self._transport is not None and not self.closing and not self._transport.is_closing():
            self._transport.resume_reading()

    def _take(self, data: memoryview) -> None:
        whole = self._decoder.whole(data)
        if whole is not None:
            if not self.closing:
                self.owner.link_received(whole)
            return
        pinged: bytes | None = None
        try:
            for op, payload in self._decoder.feed(data):
                if self.closing:
                    return
                if op is Op.BINARY:
                    self.owner.link_received(payload)
                elif op is Op.PING:
                    pinged = bytes(payload)  # the last one is answered (RFC 6455 §5.5.3): each costs a write
                elif op is Op.CLOSE:
                    self._write_control(Op.CLOSE, bytes(payload[:2]))
                    self.close("the peer closed the WebSocket")
        except WebSocketError as error:
            self._write_control(Op.CLOSE, error.code.to_bytes(2, "big"))
            self.close(f"the peer broke the WebSocket protocol: {error}")
        if pinged is not None:
            self._write_control(Op.PONG, pinged)

    def eof_received(self) -> bool:
        """A WebSocket does not half-close."""
        self.close("the peer closed the connection")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio.BaseProtocol."""
        self._transport = None
        if self._late is not None:
            self._late.cancel()
            self._late = None
        self._end("the connection was closed" if exc is None else f"the connection broke: {exc}")

    def pause_writing(self) -> None:
        """asyncio's flow control."""
        self.writable = False

    def resume_writing(self) -> None:
        """asyncio's flow control."""
        self.writable = True
        if not self.closing:
            self.owner.link_writable()

    # ---- the owner's side ---------------------------------------------------------------------------------------

    def write(self, buffers: Sequence[Buffer]) -> int:
        """One binary message holding `buffers`, in one write. The bytes in it."""
        if self._transport is None or self.closing:
            return 0
        length = sum(map(len, buffers))
        if not self._client:
            self._transport.write(b"".join((header(Op.BINARY, length, None), *buffers)))
        elif self._private:
            self._transport.write(b"".join((header(Op.BINARY, length, NO_MASK), *buffers)))
        else:
            key = os.urandom(4)
            self._transport.write(header(Op.BINARY, length, key) + apply_mask(b"".join(buffers), key))
        return length

    def pace(self, rate: float) -> None:
        """Let the kernel send no more than `rate` bytes a second, about; 0 lets it send all there is."""
        if abs(rate - self._pace) > PACE_STEP * self._pace and self._transport is not None:
            self._pace = rate
            set_option(self._transport, socket.SOL_SOCKET, _SO_MAX_PACING_RATE, min(int(rate), ANY_PACE) or ANY_PACE)

    def close(self, reason: str) -> None:
        """Flush and close, within LINK_FLUSH seconds; the owner hears `link_lost` with `reason`. Idempotent."""
        if self._transport is not None and not self.closing and self._late is None:
            # First, since closing TLS may find the peer's own end and come back here before it returns.
            self._late = self._loop.call_later(LINK_FLUSH, self._transport.abort)
            self._transport.close()
        self._end(reason)

    def abort(self, reason: str) -> None:
        """Close without flushing. Idempotent."""
        if self._transport is not None:
            self._transport.abort()
        self._end(reason)

    def _end(self, reason: str) -> None:
        if not self.closing:
            self.closing = True
            self.owner.link_lost(reason)

    def _write_control(self, op: Op, payload: bytes) -> None:
        if (
            self._transport is not None
            and not self.closing
            and self._transport.get_write_buffer_size() < 2 * WRITE_HIGH
        ):
            self._transport.write(frame(op, payload, os.urandom(4) if self._client else None))


def tune(transport: asyncio.BaseTransport) -> None:
    """Keep unsent bytes out of the kernel, where no scheduler sees them."""
    set_option(transport, socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, NOTSENT_LOWAT)


def set_option(transport: asyncio.BaseTransport, level: int, option: int, value: int) -> None:
    """Set a socket option if the socket has it."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError, AttributeError):
            sock.setsockopt(level, option, struct.pack("I", value))
