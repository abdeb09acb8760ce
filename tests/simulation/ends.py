"""One end of a tunnel: the shell that moves bytes, time and events between a session, its link and what owners want.

It does what `protocol.aio.tunnel` and `protocol.aio.stream` do, on virtual time, and keeps no rule of the protocol.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from protocol import events
from protocol.constants import Code, FrameType
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.session import Session
from protocol.streams import TRANSITIONS, Input, State
from tests.simulation.books import Half, Pair, pattern
from tests.simulation.network import Link
from tests.simulation.plan import Answer, Call, Ending
from tests.simulation.wire import Watch
from tests.simulation.world import Timer, Violation, require

if TYPE_CHECKING:
    from tests.simulation.processes import Process

ROUNDING = 1e-6  # of a float's clock
READ_EVERY = 0.5  # seconds between the reads of a slow reader

_RECEIVED = {
    FrameType.OPEN_OK: Input.R_OK,
    FrameType.OPEN_ERR: Input.R_ERR,
    FrameType.DATA: Input.R_DATA,
    FrameType.FIN: Input.R_FIN,
    FrameType.RST: Input.R_RST,
}


class End:
    """One end of one tunnel."""

    def __init__(self, process: Process, name: str, session: Session, watch: Watch, side: int) -> None:
        self.process = process
        self.world = process.world
        self.books = process.simulation.books
        self.plan = process.simulation.plan
        self.name = name
        self.session = session
        self.watch = watch
        self.side = side  # of its links
        self.link: Link | None = None
        self.over = False
        self.instance = process.name
        self.tunnel = ""
        self.slot = 0  # the how manieth of its agent's
        self.epoch = 1
        self.live: dict[int, tuple[Half, Pair]] = {}
        self.heard_at = self.answered_at = process.clock()
        self.asked_at: float | None = None  # the first time after `answered_at` that an answer was asked for
        self.drain_timer: Timer | None = None
        self.detached_at: float | None = None
        self._timer: Timer | None = None
        self._busy = False
        self._idle_ticks = 0
        self._just_ended: set[int] = set()
        self._count_pairs(process.simulation.pairs)

    def attach(self, link: Link, position: int = 0) -> None:
        """Go on with this link; the other end has taken in `position` numbered frames."""
        self.link = link
        link.owners[self.side] = self
        self.heard_at = self.answered_at = self.process.clock()
        self.asked_at = None
        self.detached_at = None
        mine, theirs = link.marks[self.side], link.marks[1 - self.side]
        self.watch.attached(mine, theirs, written=link.ways[self.side].written, position=position)

    def snapshot(self) -> tuple[object, ...]:
        """Everything about it that somebody could notice."""
        session = self.session
        counts = session.frames_sent, session.frames_received, session.frames_acked, session.epoch
        state = session.detached_at, session.draining, session.peer_draining, session.lost, session.deadline()
        queued = tuple(session.queued(stream) for stream in self.live)
        memory = session.stream_count, session.budget.used, session.wants_to_send, queued
        return counts, state, memory, self.link, self.epoch

    # ---- what happens to it -------------------------------------------------------------------------------------

    def enter(self, call: Callable[..., None], *args: Any) -> None:
        """Do something with the session, then write what it has to say."""
        if self.over:
            return
        call(*args)
        self.flush()
        self.arm()

    def link_received(self, link: Link, data: bytes) -> None:
        """Bytes of a link."""
        self.process.handle("io", self._received, link, data)

    def link_writable(self, link: Link) -> None:
        """Room on a link."""
        self.process.handle("io", self.enter, nothing)

    def link_lost(self, link: Link, reason: str) -> None:
        """A link's end has been noticed."""
        self.process.handle("io", self._link_lost, link, reason)

    def _received(self, link: Link, data: bytes) -> None:
        if link.deaf == self.side:
            return
        link.taken[self.side] += len(data)
        if self.over or link is not self.link:
            self.world.counts["pieces of an old link"] += 1
            return
        self.world.note("received " + self.name, len(data))
        self.heard_at = self.process.clock()
        if self.watch.arrived(link.taken[self.side]):
            self.answered_at, self.asked_at = self.heard_at, None
        self.enter(self._receive, data)

    def _receive(self, data: bytes) -> None:
        try:
            happened = self.session.receive(memoryview(data), self.process.clock())
        except RemoteProtocolError as error:
            raise Violation("protocol", f"{self.name}: an honest peer broke the protocol: {error}") from error
        self.dispatch(happened)

    def _link_lost(self, link: Link, reason: str) -> None:
        if not self.over and link is self.link:
            self.world.note("link lost " + self.name, link.number)
            self.enter(self.session.detach, self.process.clock(), reason)

    # ---- time ---------------------------------------------------------------------------------------------------

    def arm(self, *, anew: bool = False) -> None:
        """Be called when the session wants to be."""
        due = self.session.deadline()
        if due is None or self.over:
            return
        when = self.process.when(due)
        if self._timer is not None:
            if self._timer.call is not None and self._timer.at <= when and not anew:
                return
            self._timer.cancel()
        self._timer = self.world.at(max(when, self.world.now), self._fire)

    def _fire(self) -> None:
        self._timer = None
        self.process.handle("timer", self._tick)

    def _tick(self) -> None:
        if self.over:
            return
        self._timer = None
        if self.link is not None and self.link.deaf == self.side:
            if not self.link.over:
                return
            self.process.disturbed_at = self.process.clock()  # it minds from now on, as its peer has let go
        now, due = self.process.clock(), self.session.deadline()
        if due is None or now < due - ROUNDING:
            self.arm()
            return
        self.world.counts["ticks"] += 1
        self.enter(lambda: self.dispatch(self.session.tick(max(now, due) + ROUNDING)))
        if not self.over:
            after = self.session.deadline()
            self._idle_ticks = self._idle_ticks + 1 if after is not None and after <= now else 0
            require(self._idle_ticks < 3, "L6 timers", "%s: due at %r after a tick at %r", self.name, after, now)

    # ---- writing ------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write while there is room."""
        if self._busy:
            return
        self._busy = True
        session, link = self.session, self.link
        while (
            link is not None
            and link is self.link
            and not self.over
            and session.wants_to_send
            and link.writable(self.side)
        ):
            if not self._pull(link):
                break
            self.dispatch(session.take_events())
            self._drop_flushed()
        self.dispatch(session.take_events())
        self._drop_flushed()
        self._busy = False
        self._just_ended.clear()

    def _pull(self, link: Link) -> bool:
        session = self.session
        ready = [stream for stream in self.live if session.queued(stream)]
        data = b"".join(session.data_to_send(self.process.clock(), self.plan.pull))
        if data:
            if self.watch.wrote(data, ready, session.queued) and self.asked_at is None:
                self.asked_at = self.process.clock()
            link.write(self.side, data)
        return bool(data)

    def _drop_flushed(self) -> None:
        for stream, (half, _) in list(self.live.items()):
            if half.closing and self.session.flushed(stream):
                self._did(stream, Input.S_RST)
                self.session.reset(stream, Code.NONE, "closed")
                self._end(stream, "closed here", "closed")

    # ---- what the session tells ---------------------------------------------------------------------------------

    def dispatch(self, happened: list[events.Event]) -> None:
        """Pass events on to the owners of streams."""
        for event in happened:
            if getattr(event, "stream", 0) in self._just_ended:
                continue
            match event:
                case events.DataReceived():
                    half, pair = self._of(event.stream)
                    half.received(event.data, self._where(pair, half))
                    self._read(event.stream, half)
                case events.WritableAgain():
                    half, pair = self._of(event.stream)
                    require(half.paused, "S8 woken", "%s: woken, but never paused", pair.where)
                    half.paused = False
                    self._write(event.stream, half)
                case events.StreamOpened():
                    self._asked(event)
                case events.StreamAccepted():
                    half, pair = self._of(event.stream)
                    require(not half.accepted, "S9 open", "%s: accepted twice", pair.where)
                    half.accepted = True
                case events.StreamFinished():
                    half, pair = self._of(event.stream)
                    half.saw_finish(self._where(pair, half))
                case events.StreamRefused():
                    half, pair = self._of(event.stream)
                    require(not half.accepted, "S9 open", "%s: refused after it was accepted", pair.where)
                    if pair.call.by_agent:
                        fits = event.code in (Code.FORBIDDEN, Code.DIAL_TIMEOUT)
                        require(fits, "S9 refusal", "%s: the server says %s", pair.where, event.code.name)
                        self.world.counts["refused an agent: " + event.code.name] += 1
                    self._end(event.stream, "refused", f"{event.code.name} {event.text}")
                case events.StreamReset():
                    self._end(event.stream, "reset by peer", f"{event.code.name} {event.text}")
                case events.StreamClosed():
                    self._end(event.stream, "closed", "closed")
                case events.LinkLost():
                    self.detached_at = self.process.clock()
                    self.process.detached(self, event)
                case events.TunnelLost():
                    self._lost(event)
                case events.GoingAway():
                    self.process.going_away(self, event)
                case _:
                    pass

    def _of(self, stream: int) -> tuple[Half, Pair]:
        found = self.live.get(stream)
        require(found is not None, "S8 after the end", "%s: an event for stream %d, which is gone", self.name, stream)
        assert found is not None
        return found

    @staticmethod
    def _where(pair: Pair, half: Half) -> str:
        return f"{pair.where}, {'opener' if half is pair.opener else 'acceptor'}"

    def _end(self, stream: int, outcome: str, reason: str) -> None:
        half, pair = self._of(stream)
        del self.live[stream]
        if outcome.endswith("here"):
            self._just_ended.add(stream)  # what the session had told before is still on its way
        self.watch.ended(stream)
        half.end(outcome, reason.strip(), self._where(pair, half))
        self.world.note(outcome + " " + self.name, stream)
        self.world.counts["ended: " + outcome] += 1

    def _lost(self, event: events.TunnelLost) -> None:
        require(bool(event.text), "S8 no reason", "%s: the tunnel was lost without a reason", self.name)
        self.world.counts["tunnels lost: " + event.code.name] += 1
        for stream in list(self.live):
            self._end(stream, "lost", f"{event.code.name} {event.text}")
        self.process.lost(self, event)

    def kill(self) -> None:
        """The process is gone, and cannot say so."""
        self.over = True
        for stream in list(self.live):
            self._end(stream, "killed", "its process was killed")
        self.let_go()

    def let_go(self) -> None:
        """Nothing happens here any more."""
        self.over = True
        for timer in (self._timer, self.drain_timer):
            if timer is not None:
                timer.cancel()

    # ---- streams: opening ---------------------------------------------------------------------------------------

    def open(self, call: Call) -> bool:
        """Open a stream, as far as the session lets."""
        number = len(self.books.pairs)
        try:
            stream = self.session.open(
                "kubernetes", self.process.clock(), caller="192.0.2.7:1", connection_id=str(number)
            )
        except LocalProtocolError as error:
            self.world.counts["not opened: " + error.code.name] += 1
            return False
        _, pair = self.books.opened(call, f"{self.name} stream {stream}", self.world.now)
        self.live[stream] = pair.opener, pair
        self.world.counts["streams"] += 1
        self.world.note("opened " + self.name, stream)
        self.process.simulation.opened(pair)
        self._write(stream, pair.opener)
        if call.cancel_after is not None and not pair.opener.outcome:
            self._later(call.cancel_after, stream, self._cancel)
        self.flush()
        self.arm()
        return True

    def _asked(self, event: events.StreamOpened) -> None:
        pair = self.books.asked(int(event.connection_id), self.name)
        require(self.drain_timer is None, "S10 open", "%s: asked for a stream after its GOAWAY", self.name)
        require(event.stream not in self.live, "S8 ids", "%s: stream %d is in use", self.name, event.stream)
        half = pair.acceptor
        assert half is not None
        self.live[event.stream] = half, pair
        self._later(pair.call.answer_after, event.stream, self._answer)

    def _answer(self, stream: int, half: Half) -> None:
        if not half.asked:
            return
        half.asked = False
        call = self.live[stream][1].call
        if call.answer is Answer.RESET:
            self._cancel(stream, half)
        elif call.answer is Answer.REFUSE:
            self._did(stream, Input.S_ERR)
            self.session.refuse(stream, Code.FORBIDDEN, "no")
            self._end(stream, "refused here", "no")
        else:
            self._did(stream, Input.S_OK)
            self.session.accept(stream)
            half.accepted = True
            self._write(stream, half)

    def _cancel(self, stream: int, half: Half) -> None:
        self._did(stream, Input.S_RST)
        self.session.reset(stream, Code.CANCELLED, "no longer wanted")
        self._end(stream, "reset here", "no longer wanted")

    def _later(self, seconds: float, stream: int, call: Callable[[int, Half], None]) -> None:
        """The same stream again after a while, if it still lives; at once when the run is about to end."""
        if self.process.simulation.healed:
            seconds = min(seconds, 0.01)
        half = self.live[stream][0]

        def now() -> None:
            if not self.over and not half.outcome:
                self.process.handle("timer", self.enter, self._if_live, stream, half, call)

        self.world.after(seconds, now)

    @staticmethod
    def _if_live(stream: int, half: Half, call: Callable[[int, Half], None]) -> None:
        if not half.outcome:
            call(stream, half)

    # ---- streams: writing and reading ---------------------------------------------------------------------------

    def _write(self, stream: int, half: Half) -> None:
        side, session = half.side, self.session
        half.writing = False
        while not half.paused and not half.finished and not half.outcome and not half.asked:
            if half.written >= side.writes:
                self._said_all(stream, half)
                return
            size = min(side.chunk, side.writes - half.written)
            self._did(stream, Input.S_DATA)
            try:
                room = session.send(stream, pattern(half.start, half.written, size))
            except LocalProtocolError:
                # Only a peer that closed in order makes a live stream unwritable.
                require(half.peer_finished, "S8 send", "%s: stream %d takes no data", self.name, stream)
                half.finished = True
                return
            half.written += size
            half.paused = not room
            queued, most = session.queued(stream), session.limits.send_high + side.chunk
            require(queued <= most, "S7 queue", "%s: %d bytes queued, bound %d", self.name, queued, most)
            if side.pause and not self.process.simulation.healed:
                if not half.writing:
                    half.writing = True
                    self._later(side.pause, stream, self._write)
                return

    def _said_all(self, stream: int, half: Half) -> None:
        half.finished = True
        if half.side.ending is Ending.RESET and self.live[stream][1].call.opener is half.side:
            self._cancel(stream, half)
            return
        self._did(stream, Input.S_FIN)
        self.session.finish(stream)
        if half.side.ending is Ending.CLOSE:
            half.closing = True
            self._read(stream, half)

    def _read(self, stream: int, half: Half) -> None:
        """Pass on what was received, as this reader does."""
        side, size = half.side, half.read - half.consumed
        if not size or half.waiting:
            return
        if not half.closing and not self.process.simulation.healed:
            if side.stops_for and not half.stopped and half.read >= side.stops_after:
                half.stopped = half.waiting = True
                self._later(side.stops_for, stream, self._read_on)
                return
            if side.reads:
                half.waiting = True
                size = min(size, int(side.reads * READ_EVERY))
                self._later(READ_EVERY, stream, self._read_on)
        half.consumed += size
        self.watch.consumed(stream, size)
        self.session.consume(stream, size, self.process.clock())

    def _read_on(self, stream: int, half: Half) -> None:
        half.waiting = False
        self._read(stream, half)

    def heal(self) -> None:
        """Everybody reads, writes and answers from now on."""
        for stream, (half, _) in list(self.live.items()):
            if half.outcome:
                continue
            if half.asked:
                self._answer(stream, half)
            if not half.outcome:
                half.waiting = False
                self._read(stream, half)
            if not half.outcome and not half.asked:
                self._write(stream, half)

    # ---- which pairs of the transition table occur --------------------------------------------------------------

    def _count_pairs(self, pairs: Counter[tuple[State, Input]]) -> None:
        """Note each input with the state that it meets: what this looks up, no invariant rests on."""
        self._pairs = pairs
        receivers = self.session._receivers
        for kind, what in _RECEIVED.items():
            receivers[kind] = self._counting(receivers[kind], what)

    def _counting(self, receive: Callable[..., None], what: Input) -> Callable[..., None]:
        streams, pairs = self.session._streams, self._pairs

        def counted(stream: int, payload: memoryview, now: float) -> None:
            found = streams.get(stream)
            if found is not None:
                pairs[found.state, what] += 1
            receive(stream, payload, now)

        return counted

    def _did(self, stream: int, what: Input) -> None:
        found = self.session._streams.get(stream)
        if found is not None and (found.state, what) in TRANSITIONS:
            self._pairs[found.state, what] += 1


def nothing() -> None:
    """Only flush."""
