"""A tunnel: one session, the link that carries it now, and its streams as asyncio transports.

Where both ends agreed to resume, losing the link leaves the tunnel detached until `attach` gives it another one or its
window has passed. Whatever the old link still delivers, or had queued, is dropped with it.

The tunnel passes bytes and the time to the session and the session's events to their owners; it holds no rule of the
protocol. All callbacks run on the loop's thread; a protocol that raises loses its own stream only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from time import monotonic
from typing import Any, Final, TypeVar, cast

from protocol import events
from protocol.aio.busypoll import busy_poll
from protocol.aio.gather import Gather
from protocol.aio.link import Link
from protocol.aio.opening import opened
from protocol.aio.stream import IncomingStream, StreamTransport
from protocol.constants import CONTROL_SERVICE, Code
from protocol.defaults import DIAL_DEADLINE, MAX_FRAME_PAYLOAD, STALL_AFTER
from protocol.errors import LocalProtocolError, RemoteProtocolError, StreamRefused, StreamReset, TunnelLost
from protocol.handshake import Resume
from protocol.session import ACK_WITHIN, Session

log = logging.getLogger(__name__)

TIMER_SLACK: Final = 0.005

P = TypeVar("P", bound=asyncio.BaseProtocol)


@dataclass(frozen=True, slots=True)
class Closed:
    """How a tunnel ended; `at` is the monotonic clock."""

    code: Code
    text: str
    by_peer: bool
    at: float


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """One live stream, for listings."""

    id: int
    service: str
    caller: str
    connection_id: str
    opened_at: float
    bytes_in: int
    bytes_out: int


class Tunnel:
    """One authenticated tunnel. Made by `protocol.aio.dial.dial` and `protocol.aio.listener.TunnelListener`.

    Attributes:
        id: names the tunnel in logs and listings.
        peer: the verified identity of the other end.
        opened_at: the monotonic clock, seconds (a loop's own clock may stand still within a turn).
        on_stream: called for each stream that the peer asks for; it answers with `accept` or `refuse`.
        on_going_away: called once when the peer starts to drain.
        going_away: what the peer said then, for who asks later.
        on_detached: called with what says why whenever the link is lost and the tunnel waits for another.
        on_resumed: called with the seconds of the pause when another link carries it.
        on_closed: called once at the end.
        resumes: links after the first.
    """

    dialect: Final = "tower.v1"

    def __init__(
        self,
        *,
        session: Session,
        link: Link,
        tunnel_id: str,
        peer: Any,
        instance: str,
        remote: str,
        software: str = "",
        renew_only: bool = False,
        on_stream: Callable[[IncomingStream], None] | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.session = session
        self.id = tunnel_id
        self.peer = peer
        self.instance = instance
        self.remote = remote
        self.software = software
        self.renew_only = renew_only
        self.opened_at = monotonic()
        self.closed: Closed | None = None
        self.bytes_in = 0
        self.bytes_out = 0
        self.data: dict[str, Any] = {}  # the owner's notes about this tunnel
        self.on_stream = on_stream
        self.on_going_away: Callable[[Tunnel, events.GoingAway], None] | None = None
        self.going_away: events.GoingAway | None = None
        self.on_closed: Callable[[Tunnel, Closed], None] | None = None
        self.on_detached: Callable[[Tunnel, events.LinkLost], None] | None = None
        self.on_resumed: Callable[[Tunnel, float], None] | None = None
        self.resumes = 0
        self._proposed = session.epoch  # the number of the newest link that was asked for
        self._lost_at = 0.0
        self._link: Link | None = link
        self._streams: dict[int, StreamTransport] = {}
        self._closing: set[int] = set()  # streams that are dropped once their queue has left
        self._pings: dict[int, asyncio.Future[float]] = {}
        self._waiters: list[asyncio.Future[Closed]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._flush_scheduled = False
        self._gather = Gather()
        self._busy_poll = busy_poll(self.loop)
        self._handlers: dict[type[events.Event], Callable[[Any], None]] = {
            events.DataReceived: self._on_data,
            events.WritableAgain: self._on_writable,
            events.StreamAccepted: self._on_accepted,
            events.StreamFinished: self._on_finished,
            events.StreamClosed: self._on_closed,
            events.StreamOpened: self._on_opened,
            events.StreamRefused: self._on_refused,
            events.StreamReset: self._on_reset,
            events.RoundTrip: self._on_round_trip,
            events.GoingAway: self._on_going_away,
            events.LinkLost: self._on_link_lost,
            events.TunnelLost: self._on_lost,
        }
        link.owner = self
        self._arm()
        self._schedule_flush()

    # ---- what owners ask and want -------------------------------------------------------------------------------

    @property
    def features(self) -> frozenset[str]:
        """What both ends agreed on."""
        return self.session.features

    @property
    def rtt(self) -> float | None:
        """The least of the last measured round trips, seconds."""
        return self.session.rtt

    @property
    def stream_count(self) -> int:
        """Live streams."""
        return self.session.stream_count

    @property
    def detached(self) -> bool:
        """Whether there is no link now, and another may come."""
        return self.session.detached_at is not None

    @property
    def waits_for(self) -> float:
        """Seconds for which another link would still be accepted; 0 while there is a link."""
        since = self.session.detached_at
        return 0.0 if since is None else max(0.0, since + self.session.limits.resume_window - monotonic())

    @property
    def draining(self) -> bool:
        """Whether no new streams go here."""
        return self.session.draining or self.session.peer_draining

    @property
    def stalled(self) -> bool:
        """Whether new streams had better go elsewhere: there is no link, or the peer has owed an answer for too long.

        Too long is more than four round trips, but no less than STALL_AFTER: a slow, full link answers late too.
        """
        return self.detached or self.session.overdue(monotonic()) >= max(STALL_AFTER, 4 * (self.session.rtt or 0.0))

    @property
    def silent(self) -> bool:
        """Whether it stalls and nothing has come meanwhile: what comes late on a slow, full link may come still."""
        return self.stalled and (self.detached or self.session.silence(monotonic()) >= STALL_AFTER)

    @property
    def buffered(self) -> int:
        """Bytes charged to this tunnel: those that wait in either direction, and the credit its peer was granted."""
        return self.session.budget.used

    def streams(self) -> list[StreamInfo]:
        """The live streams, oldest first."""
        return [
            StreamInfo(
                stream.id,
                stream.get_extra_info("service"),
                stream.get_extra_info("caller"),
                stream.get_extra_info("connection_id"),
                stream.opened_at,
                stream.bytes_in,
                stream.bytes_out,
            )
            for stream in self._streams.values()
        ]

    def start_open(
        self, service: str, protocol: asyncio.BaseProtocol, *, caller: str = "", connection_id: str = ""
    ) -> StreamTransport:
        """Open a stream without waiting: data may be written at once (the first 16 KiB leave before the answer).

        The protocol hears `connection_made` now, `stream_accepted` (if it has such a method) when the peer agrees, and
        `connection_lost(StreamRefused)` when it does not.

        Raises:
            StreamRefused: the tunnel takes no new stream (draining, full, over); nothing was sent.
        """
        try:
            stream_id = self.session.open(service, monotonic(), caller=caller, connection_id=connection_id)
        except LocalProtocolError as error:
            raise StreamRefused(error.code, error.text) from error
        transport = self._add(stream_id, protocol, service, caller, connection_id)
        self._schedule_flush()
        self._arm()
        try:
            protocol.connection_made(transport)
        except BaseException:
            transport.reset(Code.INTERNAL, "internal error; the log of this end says more")
            raise
        return transport

    async def open(
        self,
        service: str,
        protocol: asyncio.BaseProtocol,
        *,
        caller: str = "",
        connection_id: str = "",
        deadline: float = DIAL_DEADLINE,
    ) -> StreamTransport:
        """Open a stream and wait for the peer's answer. StreamRefused, TunnelLost, TimeoutError: see `opened`."""
        start = partial(self.start_open, service, caller=caller, connection_id=connection_id)
        return await opened(start, protocol, deadline=deadline)

    async def ping(self, deadline: float = DIAL_DEADLINE) -> float:
        """One round trip through the tunnel, in seconds. TimeoutError, TunnelLost."""
        if self.closed is not None:
            raise TunnelLost(self.closed.code, self.closed.text)
        token = self.session.ping(monotonic())
        future: asyncio.Future[float] = self.loop.create_future()
        self._pings[token] = future
        self._schedule_flush()
        try:
            async with asyncio.timeout(deadline):
                return await future
        finally:
            self._pings.pop(token, None)

    def drain(self, code: Code, text: str, *, deadline: float, retry_after: float) -> None:
        """Ask the peer to move elsewhere; new streams are refused from now on."""
        self.session.go_away(code, text, deadline=deadline, retry_after=retry_after)
        self._schedule_flush()

    def close(self, code: Code, text: str) -> None:
        """Tell the peer why and end the tunnel; every stream ends with TunnelLost. Idempotent."""
        if self.session.lost is None:
            self.session.close(code, text)
            self._finish()

    def lose(self, code: Code, text: str) -> None:
        """End the tunnel without telling the peer, which knows; every stream ends with TunnelLost. Idempotent."""
        self.session.lose(code, text)
        self._dispatch(self.session.take_events())

    # ---- links --------------------------------------------------------------------------------------------------

    def propose(self) -> Resume:
        """What to present to the server for a new link. The old link is dropped, so that the count cannot change."""
        self.link_lost("a new link is dialled")
        self._proposed += 1
        return Resume(self.id, self._proposed, self.session.frames_received)

    def stands(self, proposal: Resume) -> bool:
        """Whether a proposal still holds: nothing was received since `propose` made it."""
        return self.detached and proposal.epoch == self._proposed

    def attach(self, link: Link, *, peer_received: int, epoch: int, peer: Any, remote: str) -> None:
        """Go on over a new link, whose handshake proved the peer. HandshakeRejected: nothing has changed."""
        now = monotonic()
        self.session.attach(now, peer_received, epoch=epoch)
        self._dispatch(self.session.take_events())  # among them the end of a link that seemed alive
        self._proposed = max(self._proposed, epoch)
        self.peer, self.remote = peer, remote
        self.resumes += 1
        self._link = link
        link.owner = self
        self._arm()
        self._schedule_flush()
        if self.on_resumed is not None:
            self.on_resumed(self, now - self._lost_at)

    async def wait_closed(self) -> Closed:
        """Wait for the end."""
        if self.closed is not None:
            return self.closed
        future: asyncio.Future[Closed] = self.loop.create_future()
        self._waiters.append(future)
        return await future

    # ---- what streams call --------------------------------------------------------------------------------------

    def stream_write(self, stream: int, data: bytes) -> bool:
        """False when the writer should pause."""
        try:
            room = self.session.send(stream, data)
        except LocalProtocolError:
            return True  # the stream has just ended; its protocol hears it from the loop
        self._gather.wrote(len(data))
        if not self._flush_scheduled:
            self._schedule_flush()
        return room

    def stream_finish(self, stream: int) -> None:
        """Half-close."""
        self.session.finish(stream)
        self._schedule_flush()

    def stream_close(self, stream: int) -> None:
        """Flush, then drop."""
        self.session.finish(stream)
        self._closing.add(stream)
        self._schedule_flush()

    def stream_reset(self, stream: int, code: Code, text: str) -> None:
        """Drop at once."""
        self.session.reset(stream, code, text)
        self._schedule_flush()

    def stream_accept(self, stream: int) -> None:
        """Accept a stream of the peer. If the peer has dropped it meanwhile, an event that follows says so."""
        with contextlib.suppress(LocalProtocolError):
            self.session.accept(stream)
        self._schedule_flush()

    def stream_refuse(self, stream: int, code: Code, text: str) -> None:
        """Refuse a stream of the peer."""
        with contextlib.suppress(LocalProtocolError):  # the peer has dropped it meanwhile
            self.session.refuse(stream, code, text)
        self._schedule_flush()

    def consumed(self, stream: int, size: int) -> None:
        """Bytes that a transport held were passed on: their credit may go back."""
        self.session.consume(stream, size, monotonic())
        self._schedule_flush()

    def forget(self, stream: int) -> None:
        """A transport has ended."""
        self._streams.pop(stream, None)
        self._closing.discard(stream)

    # ---- what the link calls ------------------------------------------------------------------------------------

    def link_received(self, data: memoryview) -> None:
        """Bytes from the peer."""
        self.bytes_in += len(data)
        session, now = self.session, monotonic()
        try:
            happened = session.receive(data, now)
        except RemoteProtocolError as error:
            self._broken(error)
            self._finish()
            return
        if len(data) > MAX_FRAME_PAYLOAD:
            self._dispatch_together(happened)
        else:
            self._dispatch(happened)
        if not self._flush_scheduled and session.wants_to_send:
            self._schedule_flush()
        if self._timer is None or self._due > now + ACK_WITHIN:  # nothing that came is due before that
            self._arm()

    def link_writable(self) -> None:
        """Room on the link."""
        self._flush()

    def link_lost(self, reason: str) -> None:
        """The link is gone, and without resume the tunnel with it. Idempotent."""
        self.session.detach(monotonic(), reason)
        self._dispatch(self.session.take_events())
        self._arm()

    # ---- events -------------------------------------------------------------------------------------------------

    def _dispatch(self, happened: Iterable[events.Event]) -> None:
        for event in happened:
            self._handlers[type(event)](event)

    def _dispatch_together(self, happened: list[events.Event]) -> None:
        """In their order; what came for one stream, side by side, at once."""
        for number, group in groupby(happened, _whose_data):
            if number is None:
                self._dispatch(group)
            else:
                self._receive(number, [event.data for event in cast("Iterator[events.DataReceived]", group)])

    def _on_data(self, event: events.DataReceived) -> None:
        self._receive(event.stream, [event.data])

    def _receive(self, number: int, pieces: list[memoryview]) -> None:
        stream = self._streams.get(number)
        size = sum(map(len, pieces))
        if stream is not None:
            try:
                size = stream.receive(pieces)
            except Exception as error:
                self._protocol_failed(stream, error)
                return
        if size:
            self.session.consume(number, size, monotonic())

    def _on_writable(self, event: events.WritableAgain) -> None:
        if (stream := self._streams.get(event.stream)) is not None:
            self.guard(stream, stream.writable_again)

    def _on_accepted(self, event: events.StreamAccepted) -> None:
        if (stream := self._streams.get(event.stream)) is not None:
            self.guard(stream, stream.accepted)
        if event.stream in self._closing:
            self._schedule_flush()

    def _on_finished(self, event: events.StreamFinished) -> None:
        if (stream := self._streams.get(event.stream)) is not None:
            self.guard(stream, stream.receive_eof)

    def _on_closed(self, event: events.StreamClosed) -> None:
        if (stream := self._streams.get(event.stream)) is not None:
            stream.lose(None)

    def _on_refused(self, event: events.StreamRefused) -> None:
        if (stream := self._streams.get(event.stream)) is not None:
            stream.lose(StreamRefused(event.code, event.text))

    def _on_reset(self, event: events.StreamReset) -> None:
        if (stream := self._streams.get(event.stream)) is not None:
            stream.lose(StreamReset(event.code, event.text))

    def _on_opened(self, event: events.StreamOpened) -> None:
        transport = self._add(event.stream, None, event.service, event.caller, event.connection_id)
        incoming = IncomingStream(self, transport, event.service, event.caller, event.connection_id)
        if self.on_stream is None:
            incoming.refuse(Code.UNKNOWN_SERVICE, f"no service {event.service!r} here")
            return
        on_stream = self.on_stream
        self.guard(transport, lambda: on_stream(incoming))

    def _on_round_trip(self, event: events.RoundTrip) -> None:
        future = self._pings.pop(event.token, None)
        if future is not None and not future.done():
            future.set_result(event.seconds)

    def _on_going_away(self, event: events.GoingAway) -> None:
        self.going_away = event
        if self.on_going_away is not None:
            self.on_going_away(self, event)

    def _on_link_lost(self, event: events.LinkLost) -> None:
        self._lost_at = monotonic()
        self._let_go(event.text, flush=False)
        log.info("tunnel %s from %s lost its link: %s", self.id, self.remote, event.text)
        if self.on_detached is not None:
            self.on_detached(self, event)

    def _let_go(self, reason: str, *, flush: bool) -> None:
        """Drop the link and hear nothing more of it."""
        link, self._link = self._link, None
        if link is not None:
            link.owner = _NOBODY
            if flush:
                link.close(reason)
            else:
                link.abort(reason)

    def _on_lost(self, event: events.TunnelLost) -> None:
        self.closed = Closed(event.code, event.text, event.by_peer, monotonic())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for stream in list(self._streams.values()):
            stream.lose(TunnelLost(event.code, event.text))
        for ping in self._pings.values():
            if not ping.done():
                ping.set_exception(TunnelLost(event.code, event.text))
        self._pings.clear()
        self._let_go(event.text, flush=event.code is not Code.DEAD_PEER)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(self.closed)
        if self.on_closed is not None:
            self.on_closed(self, self.closed)

    # ---- small parts --------------------------------------------------------------------------------------------

    def _add(
        self, stream: int, protocol: asyncio.BaseProtocol | None, service: str, caller: str, connection_id: str
    ) -> StreamTransport:
        info = {"service": service, "caller": caller, "connection_id": connection_id, "tunnel": self}
        transport = self._streams[stream] = StreamTransport(self, stream, protocol, info)
        return transport

    def guard(self, stream: StreamTransport, call: Callable[[], None]) -> None:
        """Run a protocol's callback: the boundary at which its failure ends its own stream only."""
        try:
            call()
        except Exception as error:
            self._protocol_failed(stream, error)

    def _protocol_failed(self, stream: StreamTransport, error: Exception) -> None:
        service = stream.get_extra_info("service")
        if service == CONTROL_SERVICE and isinstance(error, RemoteProtocolError):
            self._broken(error)
            self.close(error.code, error.text)
            return
        log.error("tunnel %s stream %d (%s): the protocol failed", self.id, stream.id, service, exc_info=error)
        stream.reset(Code.INTERNAL, "internal error; the log of this end says more")

    def _broken(self, error: RemoteProtocolError) -> None:
        log.warning("tunnel %s from %s: the peer broke the protocol: %s", self.id, self.remote, error)

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self._scheduled_flush)

    def _scheduled_flush(self) -> None:
        waits = self._busy_poll.held = self._gather.waits(monotonic())
        if waits:
            self.loop.call_soon(self._scheduled_flush)
            return
        self._flush_scheduled = False
        self._flush()

    def _flush(self) -> None:
        session, link = self.session, self._link
        while link is not None and link.writable:
            buffers = session.data_to_send(monotonic(), session.chunk)
            if not buffers:
                break
            link.pace(session.pace)
            self.bytes_out += link.write(buffers)
        self._dispatch(session.take_events())
        if self._closing:
            self._drop_flushed()

    def _drop_flushed(self) -> None:
        for stream_id in list(self._closing):
            if self.session.flushed(stream_id):
                self.session.reset(stream_id, Code.NONE, "closed")
                stream = self._streams.get(stream_id)
                if stream is not None:
                    stream.lose(None)
                self._closing.discard(stream_id)
                self._schedule_flush()

    def _finish(self) -> None:
        """The session is over: send what it still has (CLOSE) and drop the link."""
        buffers = self.session.data_to_send(monotonic(), self.session.chunk)
        if buffers and self._link is not None:
            self._link.write(buffers)
        self._dispatch(self.session.take_events())

    def _arm(self) -> None:
        due = self.session.deadline()
        if due is None or (self._timer is not None and self._due <= due + TIMER_SLACK):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(max(0.0, due - monotonic()), self._tick)
        self._due = due

    def _tick(self) -> None:
        self._timer = None
        self._dispatch(self.session.tick(monotonic()))
        if self.session.wants_to_send:
            self._schedule_flush()
        self._arm()


def _whose_data(event: events.Event) -> int | None:
    return event.stream if type(event) is events.DataReceived else None


class _Nobody:
    """The owner of links that were dropped: ignores whatever they report."""

    def link_received(self, data: memoryview) -> None:
        """Ignored."""

    def link_writable(self) -> None:
        """Ignored."""

    def link_lost(self, reason: str) -> None:
        """Ignored."""


_NOBODY: Final = _Nobody()
