"""Two sessions and the bytes between them, cut anywhere, in every order that hypothesis can think of.

Checked after every step: bytes arrive in order and once, a finish is seen once and after all of them, each stream ends
once and says nothing afterwards, credit and budgets add up to the byte. At the end: whatever still lives can be
finished, everything that was written arrives, and nothing is left. Hypothesis steers few runs and shrinks what it
finds; seeded walks through the same steps make many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocol import events
from protocol.constants import FEATURE_ACK, Code
from protocol.errors import LocalProtocolError
from protocol.flow import Budget, Limits
from protocol.session import Session
from tests.lab.examples import examples

LIMITS = Limits(
    initial_credit=64,
    reserved_credit=16,
    max_credit=512,
    tunnel_budget=1500,
    max_streams=12,
    open_backlog=5,
    send_high=100,
    send_low=20,
    open_deadline=4.0,
)
STEP = 1.0


@dataclass
class Half:
    """What one end knows of one stream."""

    written: bytearray = field(default_factory=bytearray)
    read: bytearray = field(default_factory=bytearray)
    unconsumed: int = 0
    accepted: bool = False  # it may be written and read: accepted by the peer or by this end
    asked: bool = False
    finished: bool = False  # by this end
    closing: bool = False
    peer_finished: bool = False
    paused: bool = False
    outcome: str = ""


class End:
    """A session with an owner that keeps books."""

    def __init__(self, *, opens_odd: bool, process: Budget, limits: Limits, features: frozenset[str]) -> None:
        self.session = Session(
            opens_odd=opens_odd, accepts=True, limits=limits, budget=process, now=0.0, features=features
        )
        self.halves: dict[int, Half] = {}
        self.wire = bytearray()  # on its way to this end
        self.pings: set[int] = set()
        self.went_away = 0

    def live(self) -> list[int]:
        return [stream for stream, half in self.halves.items() if not half.outcome]

    def take(self, happened: list[events.Event]) -> None:
        for event in happened:
            match event:
                case events.StreamOpened():
                    assert event.stream not in self.halves, "an id that was used before"
                    self.halves[event.stream] = Half(asked=True)
                case events.DataReceived():
                    half = self.alive(event.stream)
                    assert event.data, "empty data"
                    assert not half.peer_finished, "data after the finish"
                    half.read += event.data
                    half.unconsumed += len(event.data)
                case events.StreamAccepted():
                    half = self.alive(event.stream)
                    assert not half.accepted, "accepted twice"
                    half.accepted = True
                case events.StreamFinished():
                    half = self.alive(event.stream)
                    assert not half.peer_finished, "finished twice"
                    half.peer_finished = True
                case events.WritableAgain():
                    half = self.alive(event.stream)
                    assert half.paused, "woken, but never paused"
                    half.paused = False
                case events.StreamRefused():
                    half = self.alive(event.stream)
                    assert not half.accepted
                    half.outcome = "refused"
                case events.StreamReset():
                    self.alive(event.stream).outcome = "reset by peer"
                case events.StreamClosed():
                    half = self.alive(event.stream)
                    assert half.peer_finished
                    assert not half.unconsumed, "closed before all was passed on"
                    half.outcome = "closed"
                case events.RoundTrip():
                    assert event.token not in self.pings or self.pings.remove(event.token) is None
                case events.GoingAway():
                    self.went_away += 1
                    assert self.went_away == 1
                case events.LinkLost():
                    pass
                case _:
                    raise AssertionError(f"unexpected {event}")

    def alive(self, stream: int) -> Half:
        half = self.halves[stream]
        assert not half.outcome, f"something happened to stream {stream} after it was {half.outcome}"
        return half

    def close_flushed(self) -> None:
        for stream in self.live():
            half = self.halves[stream]
            if half.closing and self.session.flushed(stream):
                half.outcome = "closed here"
                self.session.reset(stream, Code.NONE, "closed")


which = st.integers(0, 1)
pick = st.integers(0, 2**16)


class TwoEnds(RuleBasedStateMachine):
    limits = LIMITS
    features = frozenset({FEATURE_ACK})
    process_budget = 2500

    def __init__(self) -> None:
        super().__init__()
        process = Budget(self.process_budget)
        self.process = process
        server, agent = (
            End(opens_odd=odd, process=process, limits=self.limits, features=self.features) for odd in (True, False)
        )
        self.ends = (server, agent)
        self.now = 0.0

    def choose(self, end: int, pick: int, *, asked: bool | None = None) -> tuple[End, int | None]:
        one = self.ends[end]
        candidates = [s for s in one.live() if asked is None or one.halves[s].asked is asked]
        return one, candidates[pick % len(candidates)] if candidates else None

    # ---- wishes -----------------------------------------------------------------------------------------------------

    @rule(end=which)
    def open(self, end: int) -> None:
        one = self.ends[end]
        used = one.session.budget.used
        try:
            stream = one.session.open("kubernetes", self.now)
        except LocalProtocolError:
            assert one.session.budget.used == used
            return
        assert stream > max((s for s in one.halves if s % 2 == stream % 2), default=0), "an id used twice"
        one.halves[stream] = Half()

    @rule(end=which, pick=pick, yes=st.sampled_from([True, True, True, False]))
    def answer(self, end: int, pick: int, yes: bool) -> None:
        one, stream = self.choose(end, pick, asked=True)
        if stream is None:
            return
        half = one.halves[stream]
        half.asked = False
        if yes:
            one.session.accept(stream)
            half.accepted = True
        else:
            one.session.refuse(stream, Code.FORBIDDEN, "no")
            half.outcome = "refused here"

    @rule(end=which, pick=pick, size=st.integers(1, 150))
    def send(self, end: int, pick: int, size: int) -> None:
        one, stream = self.choose(end, pick, asked=False)
        if stream is None or one.halves[stream].finished or one.halves[stream].paused:
            return
        half = one.halves[stream]
        payload = bytes((len(half.written) + n) % 251 for n in range(size))
        try:
            room = one.session.send(stream, payload)
        except LocalProtocolError:
            assert half.peer_finished, "only a peer that closed makes a stream unwritable"
            half.finished = True
            return
        half.written += payload
        half.paused = not room

    @rule(end=which, pick=pick)
    def finish(self, end: int, pick: int) -> None:
        one, stream = self.choose(end, pick, asked=False)
        if stream is not None:
            one.session.finish(stream)
            one.halves[stream].finished = True

    @rule(end=which, pick=pick)
    def close(self, end: int, pick: int) -> None:
        """What a transport's close does: finish, read on and throw away, reset once all has left."""
        one, stream = self.choose(end, pick, asked=False)
        if stream is not None:
            self.finish(end, pick)
            one.halves[stream].closing = True

    @rule(end=which, pick=pick)
    def reset(self, end: int, pick: int) -> None:
        one, stream = self.choose(end, pick)
        if stream is not None:
            one.session.reset(stream, Code.CANCELLED, "no longer")
            one.halves[stream].outcome = "reset here"

    @rule(end=which, pick=pick, part=st.floats(0.01, 1.0))
    def consume(self, end: int, pick: int, part: float) -> None:
        one, stream = self.choose(end, pick)
        if stream is not None and (size := round(one.halves[stream].unconsumed * part)):
            one.halves[stream].unconsumed -= size
            one.session.consume(stream, size, self.now)
            one.take(one.session.take_events())

    @rule(end=which)
    def ping(self, end: int) -> None:
        self.ends[end].pings.add(self.ends[end].session.ping(self.now))

    @precondition(lambda self: self.now > 10)
    @rule(end=which)
    def go_away(self, end: int) -> None:
        self.ends[end].session.go_away(Code.SHUTDOWN, "restart", deadline=30.0, retry_after=0.0)

    # ---- the world --------------------------------------------------------------------------------------------------

    @rule(end=which, limit=st.integers(1, 400))
    def write(self, end: int, limit: int) -> None:
        one, other = self.ends[end], self.ends[1 - end]
        other.wire += b"".join(one.session.data_to_send(self.now, limit))
        one.take(one.session.take_events())
        one.close_flushed()

    @rule(end=which, size=st.integers(1, 700))
    def read(self, end: int, size: int) -> None:
        one = self.ends[end]
        piece, one.wire = bytes(one.wire[:size]), one.wire[size:]
        if piece:
            one.take(one.session.receive(memoryview(piece), self.now))
            one.close_flushed()

    @rule(end=which, size=st.integers(1, 700), limit=st.integers(1, 4000))
    def flow(self, end: int, size: int, limit: int) -> None:
        self.write(end, limit)
        self.read(1 - end, size)

    @rule(seconds=st.floats(0.0, STEP))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for end, one in enumerate(self.ends):
            one.take(one.session.tick(self.now))
            # Both links are alive: something always comes before the peer seems dead.
            one.session.ping(self.now)
            self.write(end, 400)
            self.read(1 - end, len(self.ends[1 - end].wire))

    def more_moves(self, random: Random) -> dict[Callable[..., None], Callable[[], tuple[object, ...]]]:
        """What a walk does in a kind of world that has more in it."""
        return {}

    # ---- what always holds ------------------------------------------------------------------------------------------

    @invariant()
    def what_is_read_was_written(self) -> None:
        for one, other in (self.ends, self.ends[::-1]):
            for stream, half in one.halves.items():
                peer = other.halves.get(stream)
                if peer is None:
                    assert not half.read
                    continue
                assert peer.written.startswith(half.read)
                if half.peer_finished:
                    assert peer.finished
                    assert len(half.read) == len(peer.written), "a finish before the last byte"

    @invariant()
    def every_byte_is_accounted_for(self) -> None:
        for one in self.ends:
            session = one.session
            streams = session._streams.values()
            assert set(session._streams) == set(one.live())
            kept = 0 if session._replay is None else session._replay.used
            assert session.budget.used == kept + sum(s.credit.window + s.charged for s in streams)
            assert sum(s.credit.window for s in streams) <= self.limits.tunnel_budget
            assert session._asked == sum(half.asked for half in one.halves.values() if not half.outcome)
            assert all(s.queued == sum(map(len, s.queue)) == s.charged for s in streams)
            for s in streams:
                assert 0 <= s.credit.granted - s.credit.consumed <= s.credit.window
                assert s.received - s.credit.consumed == one.halves[s.id].unconsumed
                assert s.scheduled == s.sendable, "a stream that could send has no turn, or one that cannot has"
            assert {s.id for s in session._scheduler.ready} == {s.id for s in streams if s.scheduled}
            assert session.frames_acked <= session.frames_sent
        assert self.process.used == sum(one.session.budget.used for one in self.ends)

    @invariant()
    def acknowledged_was_received_and_received_was_sent(self) -> None:
        for one, other in (self.ends, self.ends[::-1]):
            assert one.session.frames_acked <= other.session.frames_received <= one.session.frames_sent

    # ---- and in the end ---------------------------------------------------------------------------------------------

    def pass_time(self) -> None:
        """Nothing here waits for it."""

    def settle(self) -> None:
        """Both ends finish what lives, read everything, and the wire carries it."""
        for _ in range(3000):
            self.pass_time()
            for end, one in enumerate(self.ends):
                for stream in one.live():
                    half = one.halves[stream]
                    if half.asked:
                        half.asked = False
                        half.accepted = True
                        one.session.accept(stream)
                    if half.unconsumed:
                        size, half.unconsumed = half.unconsumed, 0
                        one.session.consume(stream, size, self.now)
                        one.take(one.session.take_events())
                for stream in one.live():
                    one.session.finish(stream)
                    one.halves[stream].finished = True
                self.write(end, 4000)
                self.read(1 - end, 4000)
            if not any(one.live() or one.wire or one.session.wants_to_send for one in self.ends):
                return
        raise AssertionError(f"still not settled: {[one.session._streams for one in self.ends]}")

    def teardown(self) -> None:
        self.settle()
        self.what_is_read_was_written()
        self.acknowledged_was_received_and_received_was_sent()
        for one, other in (self.ends, self.ends[::-1]):
            session = one.session
            assert session.budget.used == 0
            assert not session._streams
            assert not session._opening
            assert not session._outbox.grants
            assert not session._scheduler.ready
            assert session._asked == 0
            for stream, half in one.halves.items():
                assert half.outcome, "every stream ends"
                assert not half.paused or half.outcome != "closed", "a writer that nobody woke"
                peer = other.halves.get(stream)
                if half.outcome == "closed":
                    assert peer is not None
                    assert half.read == peer.written, "an orderly end, and bytes are missing"
                    # The last two crossed the end: somebody, or the deadline of an open, came between.
                    assert peer.outcome in ("closed", "closed here", "reset here", "refused")
                elif half.outcome == "reset by peer" and peer is not None:
                    assert peer.outcome in ("reset here", "closed here", "refused")  # the last: nobody answered in time
                elif half.outcome == "refused":
                    # Or nobody answered in time, and the answer and an end crossed that.
                    ends = ("refused here", "reset by peer", "reset here", "closed", "closed here")
                    assert peer is None or peer.outcome in ends
        assert self.process.used == 0


TwoEnds.TestCase.settings = examples(12, stateful_step_count=30, suppress_health_check=list(HealthCheck))
TestTwoEnds = TwoEnds.TestCase


def walk(seed: int, steps: int, make: type[TwoEnds] = TwoEnds) -> None:
    random = Random(seed)
    ends = make()
    moves = {
        ends.open: lambda: (),
        ends.answer: lambda: (random.randrange(99), random.random() < 0.8),
        ends.send: lambda: (random.randrange(99), random.randint(1, 150)),
        ends.finish: lambda: (random.randrange(99),),
        ends.close: lambda: (random.randrange(99),),
        ends.reset: lambda: (random.randrange(99),),
        ends.consume: lambda: (random.randrange(99), random.random()),
        ends.ping: lambda: (),
        ends.write: lambda: (random.randint(1, 400),),
        ends.read: lambda: (random.randint(1, 700),),
        ends.flow: lambda: (random.randint(1, 700), random.randint(1, 4000)),
    }
    moves |= ends.more_moves(random)
    # Each walk has a world of its own: mostly writing, mostly closing, a slow wire ...
    weights = [random.choice((1, 3, 10)) for _ in moves]
    for _ in range(steps):
        move = random.choices(list(moves), weights)[0]
        move(random.randrange(2), *moves[move]())
        if random.random() < 0.1:
            ends.wait(random.random() * STEP)
        if ends.now > 10 and random.random() < 0.005:
            ends.go_away(random.randrange(2))
        ends.what_is_read_was_written()
        ends.every_byte_is_accounted_for()
        ends.acknowledged_was_received_and_received_was_sent()
    ends.teardown()


@pytest.mark.parametrize("seed", range(40))
def test_a_walk_through_two_ends(seed: int) -> None:
    walk(seed, 150)


@pytest.mark.slow
def test_many_walks_through_two_ends() -> None:
    for seed in range(1000, 1400):
        walk(seed, 200)
