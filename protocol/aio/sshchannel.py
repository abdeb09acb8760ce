"""One channel of an SSH connection as an asyncio transport, with the callbacks of a stream of a tunnel.

As with `stream.StreamTransport`, `data_received` hands out bytes, a protocol may have `stream_accepted`, and
`connection_lost` gets the reason as a StreamRefused, StreamReset or TunnelLost. The receive window is `protocol.flow`'s
credit: a reader that stops stops only its own channel, and what is granted is charged to the budget.

A channel is over when both ends have sent CLOSE, which this one does where both directions have ended. Go's ends take
EOF for the end of both.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from asyncssh import ProtocolError as SshProtocolError

from protocol import defaults
from protocol.aio.sshgcm import U32
from protocol.constants import Code
from protocol.errors import ProtocolError, StreamRefused, StreamReset, TunnelLost
from protocol.flow import Budget, Limits, ReceiveCredit

if TYPE_CHECKING:
    from protocol.aio.ssh import Wire

SEND_HIGH: Final = 256 * defaults.KIB
SEND_LOW: Final = 64 * defaults.KIB
JOIN_BELOW: Final = 4 * defaults.KIB  # of what is held
MAX_REFUSED_OPENS: Final = 64  # of a peer that may open none, or asks for what is none

_ADJUST: Final = 93
DATA: Final = 94
_EXTENDED: Final = 95
_EOF: Final = 96
_CLOSE: Final = 97
_REQUEST: Final = 98
_NO: Final = 100


@dataclass(frozen=True, slots=True)
class ChannelLimits:
    """The bounds of one connection's channels."""

    budget: Budget
    credit: Limits
    most: int = defaults.MAX_STREAMS
    refused: int = MAX_REFUSED_OPENS
    rtt: Callable[[], float | None] = lambda: None

    def room(self) -> bool:
        """Whether another channel's least window can be had."""
        return self.budget.free >= self.credit.reserved_credit


class Channel(asyncio.Transport):
    """Made by a connection, for an open of ours (with a protocol) or of the peer (which gets one by `accept`)."""

    __slots__ = (
        "_closed_by_peer",
        "_closing",
        "_done",
        "_eof_due",
        "_eof_received",
        "_eof_sent",
        "_eof_told",
        "_full",
        "_held",
        "_held_size",
        "_limits",
        "_lost",
        "_paused",
        "_protocol",
        "_queue",
        "_queued",
        "_released",
        "_sent_close",
        "_turn",
        "_wire",
        "bytes_in",
        "bytes_out",
        "credit",
        "largest",
        "number",
        "on_lost",
        "opened_at",
        "opening",
        "theirs",
        "window",
    )

    def __init__(self, wire: Wire, protocol: asyncio.BaseProtocol | None, limits: ChannelLimits) -> None:
        super().__init__()
        self._wire = wire
        self._protocol = cast("asyncio.Protocol | None", protocol)
        self._limits = limits
        self.credit = ReceiveCredit(limits.budget, limits.credit)
        self.number = -1
        self.theirs = -1
        self.window = 0  # what the peer lets us send
        self.largest = 0  # of one packet of ours
        self.opening = protocol is not None
        self.on_lost: Callable[[], None] | None = None
        self.opened_at = monotonic()
        self.bytes_in = 0
        self.bytes_out = 0
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._held: deque[bytes] = deque()  # received while reading was paused; bounded by the window
        self._held_size = 0
        self._paused = protocol is None
        self._full = False
        self._turn = False  # whether it stands in line to send
        self._eof_due = self._eof_sent = False
        self._eof_received = self._eof_told = False
        self._closing = False
        self._sent_close = self._closed_by_peer = False
        self._lost = self._released = self._done = False

    # ---- what protocols call ------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or self._lost or self._eof_due or self._sent_close or not data:
            return
        data = data if type(data) is bytes else bytes(data)
        size = len(data)
        self.bytes_out += size
        wire = self._wire
        if not self._queued and not wire.ready and size <= self.window and size <= self.largest and wire.can_send:
            self.window -= size  # nobody is in line, nor anything of this one: it need not stand there either
            wire.channel_packet(DATA, self, U32.pack(size), data)
            return
        self._queue.append(data)
        self._queued += size
        self._want_turn()
        if self._queued > SEND_HIGH and not self._full:
            self._full = True
            if self._protocol is not None:
                self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """No more data from this end. A Go peer ends the other direction as well."""
        if not (self._closing or self._lost or self._eof_due or self._sent_close):
            self._eof_due = True
            self._want_turn()

    def close(self) -> None:
        """Send what is queued, then drop the channel. Idempotent."""
        if self._closing or self._lost:
            return
        self._closing = True
        self._drop_held()
        if self._sent_close:  # the peer has closed it already: nothing more can be sent, nor will anything come
            self._lose(None)
        else:
            self._want_turn()

    def abort(self) -> None:
        self.reset(Code.CANCELLED, "aborted")

    def reset(self, code: Code, text: str) -> None:
        """Drop the channel at once. SSH has no words for why. Idempotent."""
        if self._lost:
            return
        self._closing = True
        self._queue.clear()
        self._queued = 0
        self._send_close()
        self._lose(None)

    def is_closing(self) -> bool:
        return self._closing or self._lost

    def is_reading(self) -> bool:
        return not self._paused

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused and not self._lost:
            self._paused = False
            if self._held or self._eof_received:
                asyncio.get_running_loop().call_soon(self._deliver_held)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None, "the channel has not been accepted yet"
        return self._protocol

    def get_write_buffer_size(self) -> int:
        return self._queued

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The same for every channel."""

    # ---- an open of the peer's ----------------------------------------------------------------------------------

    def accept(self, protocol: asyncio.BaseProtocol) -> None:
        """Take it: the protocol gets connection_made at once."""
        self._protocol = cast("asyncio.Protocol", protocol)
        if not self._lost:
            self._wire.confirm(self)
        protocol.connection_made(self)
        if self._lost:
            asyncio.get_running_loop().call_soon(protocol.connection_lost, None)
        else:
            self.resume_reading()

    def refuse(self, reason: int, text: str) -> None:
        """Answer no, and why."""
        if not self._lost:
            self._sent_close = self._closed_by_peer = True
            self._wire.refuse(self.theirs, reason, text)
            self._lose(None)

    # ---- the answer to an open of ours --------------------------------------------------------------------------

    def give_up(self) -> None:
        """Nobody waits any more, if there is no answer yet."""
        if self.opening and not self._lost:
            waited = monotonic() - self.opened_at
            self._lose(StreamRefused(Code.DIAL_TIMEOUT, f"the agent did not answer for {waited:.1f} s"))

    def opened(self, theirs: int, window: int, largest: int) -> None:
        self.opening = False
        self.theirs, self.window, self.largest = theirs, window, largest
        if self._lost:  # nobody waits any more
            self._send_close()
            return
        handler = getattr(self._protocol, "stream_accepted", None)
        if handler is not None:
            self._guard(handler)
        self._want_turn()

    def turned_away(self, text: str) -> None:
        self.opening = False
        self._sent_close = self._closed_by_peer = True
        self._lose(StreamRefused(Code.DIAL_FAILED, f"the agent refused the channel: {text}"))

    # ---- sending ------------------------------------------------------------------------------------------------

    def _want_turn(self) -> None:
        if not self._turn and not self.opening and self._has_something():
            self._turn = True
            self._wire.ready.append(self)
            self._wire.pump()

    def _has_something(self) -> bool:
        if self._sent_close:  # the peer has forgotten it, and takes another packet for a broken connection
            return False
        if self._queue:
            return self.window > 0
        return self._closing or (self._eof_due and not self._eof_sent)

    def send_some(self) -> bool:
        """One packet; whether there is more to send just now."""
        if self._queue and self.window:
            self._wire.channel_packet(DATA, self, *self._next_piece())
            if self._full and self._queued <= SEND_LOW:
                self._let_write()
        elif not self._queue and not self._sent_close:  # in line: an EOF behind CLOSE costs Go's ends the connection
            if self._eof_due and not self._eof_sent:
                self._eof_sent = True
                self._wire.channel_packet(_EOF, self)
            if self._closing or (self._eof_sent and self._eof_told):
                self._send_close()
                self._lose(None)
        self._turn = self._has_something()
        return self._turn

    def _let_write(self) -> None:
        self._full = False
        if self._protocol is not None and not self._closing:
            self._guard(self._protocol.resume_writing)

    def _next_piece(self) -> tuple[bytes, ...]:
        """Length and bytes of the next packet: small writes are joined, large ones cut."""
        size = min(self._queued, self.window, self.largest)
        pieces: list[bytes] = []
        left = size
        while left:
            first = self._queue.popleft()
            if len(first) > left:
                self._queue.appendleft(first[left:])
                first = first[:left]
            pieces.append(first)
            left -= len(first)
        self.window -= size
        self._queued -= size
        return (U32.pack(size), *pieces)

    def _send_close(self) -> None:
        if not self._sent_close and not self.opening:
            self._sent_close = True
            self._wire.channel_packet(_CLOSE, self)
            self._settle()

    # ---- what asyncssh calls for each packet of the channel -----------------------------------------------------

    def log_received_packet(self, *_args: Any, **_more: Any) -> None:
        """Not logged: it would format a line for every packet."""

    def process_packet(self, kind: int, _id: int, packet: Any) -> bool:
        self.packet(kind, packet)
        return True

    # ---- what the connection calls for each packet of the channel -----------------------------------------------

    def received(self, data: bytes) -> None:
        """A packet of data."""
        if self.opening or self._closed_by_peer:
            raise SshProtocolError("a packet for a channel that is not open")
        self._on_data(data)

    def packet(self, kind: int, packet: Any) -> None:
        """Any packet, read up to what follows the channel's number."""
        if self.opening or self._closed_by_peer:
            raise SshProtocolError("a packet for a channel that is not open")
        if kind == DATA:
            self._on_data(packet.get_string())
        elif kind == _ADJUST:
            self.window = min(self.window + packet.get_uint32(), 0xFFFFFFFF)
            self._want_turn()
        elif kind == _EOF:
            self._on_eof()
        elif kind == _CLOSE:
            self._on_close()
        elif kind == _EXTENDED:
            packet.get_uint32()
            self._on_data(packet.get_string(), deliver=False)
        elif kind == _REQUEST:
            packet.get_string()
            if packet.get_boolean() and not self._sent_close:
                self._wire.channel_packet(_NO, self)

    def _on_data(self, data: bytes, *, deliver: bool = True) -> None:
        size = len(data)
        if size > self.credit.granted - self.credit.consumed - self._held_size or self._eof_received:
            raise SshProtocolError("data beyond the window, or after the end")
        self.bytes_in += size
        if self._lost or self._closing or not deliver:
            self._consumed(size)
        elif self._paused or self._held:
            self._hold(data)
        else:
            assert self._protocol is not None
            self._guard(self._protocol.data_received, data)
            self._consumed(size)

    def _hold(self, data: bytes) -> None:
        """Small pieces are joined: what is held costs no more than the window it is charged for."""
        self._held_size += len(data)
        if self._held and len(self._held[-1]) + len(data) <= JOIN_BELOW:
            data = self._held.pop() + data
        self._held.append(data)

    def _drop_held(self) -> None:
        """Given back, so that a peer that sends before it reads can go on to read what is flushed."""
        size, self._held_size = self._held_size, 0
        self._held.clear()
        if size:
            self._consumed(size)

    def _consumed(self, size: int) -> None:
        before = self.credit.granted
        if self._released:
            return
        granted = self.credit.consume(size, monotonic(), self._limits.rtt())
        if granted is not None and not self._closed_by_peer and not self._sent_close:
            self._wire.channel_packet(_ADJUST, self, U32.pack(granted - before))

    def _deliver_held(self) -> None:
        while self._held and not self._paused and not self._lost:
            data = self._held.popleft()
            self._held_size -= len(data)
            assert self._protocol is not None
            self._guard(self._protocol.data_received, data)
            self._consumed(len(data))
        if not self._held and not self._paused:
            self._tell_end()

    def _on_eof(self) -> None:
        self._eof_received = True
        if not self._held and not self._paused:
            self._tell_end()

    def _on_close(self) -> None:
        self._closed_by_peer = self._eof_received = True
        self._queue.clear()
        self._queued = 0
        if not self._sent_close:
            self._sent_close = True
            self._wire.channel_packet(_CLOSE, self)
        if self._closing:
            self._lose(None)  # a protocol that has closed it resumes nothing any more
        elif not self._held and not self._paused:
            self._tell_end()
        elif self._full:
            self._let_write()  # into nothing: who waits for room would not look at its other end meanwhile
        self._settle()

    def _tell_end(self) -> None:
        """Pass the peer's end on, once, after all data; a CLOSE is the end of everything."""
        if self._lost or not self._eof_received:
            return
        if not self._eof_told and self._protocol is not None:
            self._eof_told = True
            stays = self._guard(self._protocol.eof_received) and not self._eof_sent
            if not stays and not self._closed_by_peer:
                self.close()
        if self._closed_by_peer:
            self._lose(None)

    def process_connection_close(self, error: Exception | None) -> None:
        """The whole connection is gone."""
        self._sent_close = self._closed_by_peer = True
        self.opening = False
        self._lose(TunnelLost(Code.TUNNEL_LOST, str(error) if error else "the tunnel ended"))
        self._settle()

    # ---- the end ------------------------------------------------------------------------------------------------

    def _guard(self, call: Callable[..., Any], *args: Any) -> Any:
        """A protocol that raises loses its own channel only."""
        try:
            return call(*args)
        except Exception as error:  # the boundary between a caller's stream and everybody's tunnel
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a channel's protocol failed", "exception": error, "protocol": self._protocol}
            )
            if not self._lost:
                self._queue.clear()
                self._queued = 0
                self._send_close()
                self._lose(StreamReset(Code.INTERNAL, "internal error; the log says more"))
            return True

    def _lose(self, error: ProtocolError | None) -> None:
        """The stream is gone for its protocol, which hears so once, from the loop."""
        if not self._lost:
            self._lost = True
            self._drop_held()
            asyncio.get_running_loop().call_soon(self._say_lost, error)
        self._settle()

    def _say_lost(self, error: ProtocolError | None) -> None:
        protocol, self._protocol = self._protocol, None
        if self.on_lost is not None:
            self.on_lost()
        if protocol is not None:
            protocol.connection_lost(error)

    def _settle(self) -> None:
        """Give back what it holds: the memory when nothing more is kept, the number when both ends have closed."""
        if (self._closed_by_peer or self._lost) and not self._released and not self._held:
            self._released = True
            self.credit.release()
        if self._sent_close and self._closed_by_peer and not self._done:
            self._done = True
            self._wire.forget(self)
