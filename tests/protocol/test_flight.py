"""What is under way stays what the path holds: two real sessions over a link with a rate, a delay and a deep queue."""

from __future__ import annotations

import heapq
import itertools
import random
from typing import Any

import pytest

from protocol import events
from protocol.constants import Code, FrameType
from protocol.defaults import KIB, MIB
from protocol.flight import (
    FIRST_TOKEN,
    FULL_AFTER,
    GAIN,
    GRACE,
    LEAST,
    MARK_EVERY,
    MOST_MARKS,
    NO_BOUND,
    PACE_UP_TO,
    RTT_FOR,
    Flight,
)
from protocol.flow import Budget, Limits
from protocol.frames import encode
from protocol.session import EARLY, Session
from tests.protocol.playbook import Playbook, ok, spoken

MBIT = 1e6 / 8
LIMITS = Limits(tunnel_budget=256 * MIB, replay_bytes=256 * MIB)


class Path:
    """A sender (the agent) and a receiver on a virtual clock. What is written waits in one queue as deep as it gets."""

    def __init__(self, rate: float, round_trip: float, *, jitter: float = 0.0, seed: int = 1) -> None:
        self.rate, self.delay, self.jitter = rate, round_trip / 2, jitter
        self.turns = 0.0  # seconds for which either end has the only processor
        self.now, self.free_at, self.paced, self.delivered = 0.0, 0.0, 0.0, 0
        self.most_queued = 0.0  # seconds, since it was set to zero
        self._random, self._order = random.Random(seed), itertools.count()
        self._due: list[tuple[float, int, Session, bytes]] = []
        self.server = self._session(opens_odd=True)
        self.agent = self._session(opens_odd=False)
        self.asked: dict[int, float] = {}
        self.waits: list[float] = []
        self.bulk: set[int] = set()
        self._last_arrival: dict[int, float] = {}

    @staticmethod
    def _session(*, opens_odd: bool) -> Session:
        return Session(
            opens_odd=opens_odd,
            accepts=not opens_odd,
            limits=LIMITS,
            budget=Budget(512 * MIB),
            now=0.0,
            features={"ack", "resume"},
        )

    def open(self) -> int:
        stream = self.server.open("kubernetes", self.now)
        self.pump()
        self.run(4 * self.delay + 0.1)
        return stream

    def pump(self) -> None:
        for session in (self.agent, self.server):
            for stream in self.bulk if session is self.agent else ():
                while session.queued(stream) < 512 * KIB:
                    session.send(stream, bytes(64 * KIB))
            while session.wants_to_send and (data := b"".join(session.data_to_send(self.now, session.chunk))):
                leaves = self.now
                if session is self.agent:
                    begins = max(self.paced, self.now)
                    self.paced = begins + (len(data) / session.pace if session.pace else 0.0)
                    self.free_at = max(self.paced, max(self.free_at, begins) + len(data) / self.rate)
                    self.most_queued = max(self.most_queued, self.free_at - self.paced)
                    leaves = self.free_at
                # A loop that turns late hears late, and never before what came earlier.
                arrives = leaves + self.delay + self._random.random() * self.jitter
                if self.turns and int(arrives / self.turns) % 2 == (session is self.agent):
                    arrives += self.turns - arrives % self.turns  # the other end has the processor
                arrives = max(arrives, self._last_arrival.get(id(session), 0.0))
                self._last_arrival[id(session)] = arrives
                heapq.heappush(self._due, (arrives, next(self._order), session, data))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._due and self._due[0][0] <= end:
            self.now, _, source, data = heapq.heappop(self._due)
            target = self.server if source is self.agent else self.agent
            for event in target.receive(memoryview(data), self.now):
                self._heard(target, event)
            for session in (self.agent, self.server):
                if (due := session.deadline()) is not None and due <= self.now:
                    session.tick(self.now)
            self.pump()
        self.now = end

    def hold_up(self, seconds: float) -> None:
        """What would arrive within `seconds` arrives after them, all at once."""
        late = self.now + seconds
        self._due = [
            (max(arrives, late) if source is self.agent else arrives, turn, source, data)
            for arrives, turn, source, data in self._due
        ]
        heapq.heapify(self._due)
        self._last_arrival[id(self.agent)] = max(late, self._last_arrival.get(id(self.agent), 0.0))

    def _heard(self, session: Session, event: Any) -> None:
        if isinstance(event, events.StreamOpened):
            session.accept(event.stream)
        elif isinstance(event, events.DataReceived):
            session.consume(event.stream, len(event.data), self.now)
            if session is self.agent:  # a request: the answer is small
                session.send(event.stream, bytes(1500))
            else:
                self.delivered += len(event.data)
                if event.stream in self.asked:
                    self.waits.append(self.now - self.asked.pop(event.stream))

    def get(self, stream: int) -> float:
        """Seconds that one request takes."""
        self.asked[stream] = self.now
        self.server.send(stream, bytes(300))
        self.pump()
        while stream in self.asked:
            self.run(0.001)
        return self.waits[-1]


def busy(path: Path, streams: int) -> None:
    path.bulk = {path.open() for _ in range(streams)}
    path.pump()


@pytest.mark.slow
def test_a_small_answer_beside_ten_downloads_waits_no_longer_than_the_path_is_long() -> None:
    path = Path(100 * MBIT, 0.04)
    small = path.open()
    alone = max(path.get(small) for _ in range(20))
    busy(path, 10)
    path.run(3.0)
    path.delivered, path.most_queued, began = 0, 0.0, path.now
    beside = sorted(path.get(small) for _ in range(300))
    assert beside[-4] <= 2 * alone + 0.005, "p99"
    assert path.delivered / (path.now - began) > 0.93 * path.rate
    assert path.now - began > RTT_FOR, "the path ran half empty once, and was filled again"
    assert path.most_queued < 0.9 * 0.04, "a queue that holds what the path holds would lose of it"
    assert path.agent._flight.rtt == pytest.approx(0.04, abs=0.002), "own queues are no distance"


@pytest.mark.parametrize(
    ("rate", "round_trip"),
    [
        (1 * MBIT, 0.3),
        (20 * MBIT, 0.01),
        pytest.param(800 * MBIT, 0.1, marks=pytest.mark.slow),
        pytest.param(1000 * MBIT, 0.001, marks=pytest.mark.slow),
    ],
)
def test_one_stream_fills_any_path_and_no_queue(rate: float, round_trip: float) -> None:
    path = Path(rate, round_trip, jitter=0.002)
    busy(path, 1)
    path.run(max(5.0, 40 * round_trip))
    path.delivered, path.most_queued, began = 0, 0.0, path.now
    path.run(2 * RTT_FOR if rate < 100 * MBIT else 3.0)
    assert path.delivered / (path.now - began) > 0.9 * rate
    assert path.most_queued < round_trip * GAIN + 3 * GRACE + 2 * LEAST / rate


def test_a_path_that_holds_most_of_the_widest_window_is_filled() -> None:
    path = Path(240e6, 0.1)
    busy(path, 1)
    path.run(2.0)
    path.delivered, began = 0, path.now
    path.run(0.5)
    assert 0.6 * LIMITS.max_credit < path.rate * 0.1 * GAIN < LIMITS.max_credit
    assert path.delivered / (path.now - began) > 0.9 * path.rate


def test_a_link_that_was_slow_at_first_is_written_to_in_large_pieces_when_nothing_waits_any_more() -> None:
    path = Path(20 * MBIT, 0.02)
    busy(path, 1)
    path.run(3.0)
    assert path.agent.chunk < 32 * KIB
    path.rate = 800 * MBIT
    (stream,), path.bulk = path.bulk, set()
    for _ in range(400):  # a source that is slower than the link
        path.agent.send(stream, bytes(256 * KIB))
        path.pump()
        path.run(0.005)
    assert path.agent.chunk > 200 * KIB


@pytest.mark.slow
@pytest.mark.parametrize("turns", [0.02, 0.05, 0.1])
def test_ends_that_get_their_processor_late_do_not_take_their_pauses_for_a_path_that_holds_less(turns: float) -> None:
    path = Path(200 * MBIT, 0.1)
    path.turns = turns
    busy(path, 1)
    path.run(8.0)
    path.delivered, began = 0, path.now
    path.run(4.0)
    assert path.delivered / (path.now - began) > 0.85 * path.rate
    path.turns = 0.0
    path.run(5.0)
    path.most_queued = 0.0
    path.run(RTT_FOR)
    assert path.most_queued < 0.1 * GAIN + 3 * GRACE, "what was allowed for pauses ends with them"


@pytest.mark.parametrize("pauses", [1, 3])
def test_a_pause_now_and_then_is_not_taken_for_an_end_that_answers_in_bursts(pauses: int) -> None:
    path = Path(100 * MBIT, 0.04)
    busy(path, 10)
    path.run(3.0)
    before = path.agent._flight.bound
    for _ in range(pauses):
        path.hold_up(0.05)  # a packet was lost, and what followed it waited to be handed on
        path.run(0.3)
    path.delivered, path.most_queued = 0, 0.0
    path.run(1.0)
    assert path.delivered > 0.93 * path.rate
    assert path.agent._flight.bound <= 1.1 * before
    assert path.most_queued < 0.9 * 0.04


def test_the_least_round_trip_is_found_again_when_the_way_has_become_longer() -> None:
    path = Path(20 * MBIT, 0.02)
    busy(path, 1)
    path.run(3.0)
    path.delay = 0.1
    path.run(RTT_FOR + 5.0)
    path.delivered, began = 0, path.now
    path.run(5.0)
    assert path.agent._flight.rtt == pytest.approx(0.2, abs=0.03)
    assert path.delivered / (path.now - began) > 0.9 * path.rate


def test_a_link_on_which_nothing_is_left_while_the_least_round_trip_is_looked_for_falls_quiet() -> None:
    path = Path(100 * MBIT, 0.04)
    busy(path, 1)
    until = path.now + 3 * RTT_FOR
    while not path.agent._flight.draining:
        assert path.now < until, "the path never ran half empty"
        path.run(0.001)
    (stream,) = path.bulk
    path.bulk.clear()
    path.agent.reset(stream, Code.CANCELLED, "its reader has gone")
    path.pump()
    path.run(1.0)
    path.agent.receive(memoryview(encode(FrameType.PING, 0, bytes(8))), path.now)
    said = spoken(b"".join(path.agent.data_to_send(path.now, KIB)))
    assert said == ["PONG 0"], "two ends that ask while they answer would do so for ever"
    busy(path, 1)
    path.delivered, began = 0, path.now
    path.run(2.0)
    assert path.delivered / (path.now - began) > 0.9 * path.rate


def test_a_rate_that_falls_is_followed_and_one_that_rises_too() -> None:
    path = Path(100 * MBIT, 0.04)
    busy(path, 4)
    path.run(3.0)
    path.rate = 10 * MBIT
    path.run(6.0)
    path.most_queued = 0.0
    path.run(3.0)
    assert path.most_queued < 0.15
    path.rate = 100 * MBIT
    path.run(4.0)
    path.delivered, began = 0, path.now
    path.run(3.0)
    assert path.delivered / (path.now - began) > 0.9 * path.rate


def test_while_the_rate_grows_a_queue_as_long_as_the_path_does_not_overflow() -> None:
    flight, now, most = Flight(), 0.0, 0.0
    for _ in range(30):  # a round trip each, of which a path that moves 1 MB holds 500 kB
        size = min(flight.bound, 100_000_000)
        flight.sending(min(size, 20_000) if flight.rate is None else size, now, idle=False)
        token = flight.mark(now, idle=False)
        now += max(0.04, size / 12.5e6 if flight.rate else 0.04)
        flight.answered(token, now)
        most = max(most, flight.bound)
    assert flight.rate == pytest.approx(12.5e6, rel=0.01)
    assert 1.04 * most < 2 * 500_000, "TCP, TLS and frames come on top"


def test_a_burst_leaves_faster_than_the_path_moves_it_and_slower_than_all_at_once() -> None:
    flight = rounds(Flight(), 0.04)
    assert not flight.pace, "the rate may grow still"
    rounds(flight, 0.04, count=FULL_AFTER)
    assert flight.rate == pytest.approx(12.5e6)
    assert 1.5 * flight.rate < flight.pace < 2.5 * flight.rate
    rounds(flight, 0.5, count=200, size=1000)  # as slow as it gets: the pace itself must not keep it there
    assert flight.rate is not None
    assert flight.rate < 10_000
    assert flight.pace >= LEAST / 0.5
    assert not rounds(Flight(), 0.001, count=1 + FULL_AFTER).pace, "so near that nothing overflows"
    at_most = rounds(Flight(), 0.04, count=1 + FULL_AFTER, size=PACE_UP_TO // 26)
    faster = rounds(Flight(), 0.04, count=1 + FULL_AFTER, size=PACE_UP_TO // 20)
    assert (at_most.pace > 0, faster.pace) == (True, 0), "faster than 1 Gbit/s the timers cost more than the bursts"


def test_a_sender_that_has_little_to_send_does_not_take_that_for_what_the_path_moves() -> None:
    flight = rounds(Flight(), 0.04, count=1 + FULL_AFTER)
    rate, bound = flight.rate, flight.bound
    rounds(flight, 0.04, count=200, size=1000, idle=True)
    assert (flight.rate, flight.bound) == (rate, bound)


def rounds(flight: Flight, seconds: float, *, count: int = 1, size: int = 500_000, idle: bool = False) -> Flight:
    """So many round trips of that length, each with so many bytes under way."""
    begins = max(0.0, flight._arrived_at)
    for turn in range(count):
        now = begins + turn * seconds
        flight.sending(size, now, idle=idle)
        flight.answered(flight.mark(now, idle=idle), now + seconds)
    return flight


def test_an_answer_does_not_wait_until_there_is_room_and_bulk_does() -> None:
    book = Playbook(opens_odd=True)
    bulk, small = (book.session.open("kubernetes", book.now) for _ in range(2))
    book.hears(ok(bulk, 1 << 40) + ok(small, 1 << 40))
    book.session.send(bulk, bytes(32 * MIB))
    book.says(limit=64 * KIB)
    book.session._flight.bound = 64 * KIB  # all of it is under way
    book.says()
    assert not book.session.wants_to_send
    book.session.send(small, bytes(1500))
    assert book.says() == [f"DATA {small} 1500"]
    book.session.send(small, bytes(MIB))
    early = [line.split() for line in book.says() + book.says()]
    assert sum(int(line[2]) for line in early if line[0] == "DATA") <= EARLY, "however many answers there are"
    assert not book.session.wants_to_send


def test_nothing_is_bounded_before_it_is_measured_or_without_a_mark_under_way() -> None:
    flight = Flight()
    assert flight.room == NO_BOUND
    assert flight.sending(MIB, 0.0, idle=False)
    token = flight.mark(0.0, idle=False)
    assert flight.room > 100 * MIB
    assert flight.answered(token, 0.1)
    assert flight.room == flight.bound < 10 * MIB
    flight.sending(flight.bound, 0.2, idle=False)
    assert flight.room == LEAST, "nobody would say that there is room again"
    token = flight.mark(0.2, idle=False)
    assert flight.room == 0
    assert flight.answered(token, 0.3)
    assert flight.room > 0


def test_what_answers_no_mark_is_not_taken_for_one() -> None:
    flight = Flight()
    flight.sending(MIB, 0.0, idle=False)
    token = flight.mark(0.0, idle=False)
    assert token > FIRST_TOKEN
    assert not flight.answered(7, 0.1)
    assert not flight.answered(token + 1, 0.1)
    assert flight.answered(token, 0.1)
    assert not flight.answered(token, 0.1), "twice"


def test_a_peer_that_passes_a_mark_over_does_not_stop_the_link() -> None:
    flight = rounds(Flight(), 0.04, count=1 + FULL_AFTER)
    now = flight._arrived_at
    flight.sending(flight.bound // 2, now, idle=False)
    passed_over = flight.mark(now, idle=False)
    flight.sending(flight.room, now + 0.001, idle=False)
    token = flight.mark(now + 0.001, idle=False)
    assert flight.room == 0
    assert flight.answered(token, now + 0.041)
    assert flight.room == flight.bound
    assert not flight.answered(passed_over, now + 0.05)


def test_a_peer_that_answers_no_mark_gets_no_more_of_them_some_time() -> None:
    flight, now, asked = Flight(), 0.0, 0
    while flight.sending(MIB, now, idle=False):
        flight.mark(now, idle=False)
        now += MARK_EVERY
        asked += 1
        assert asked <= MOST_MARKS
    assert asked == MOST_MARKS
    assert flight.room > 0


def test_a_mark_stands_ahead_of_the_data_that_follows_it() -> None:
    book = Playbook(opens_odd=True)
    stream = book.session.open("kubernetes", book.now)
    book.says()
    book.hears(ok(stream, 1 << 30))
    book.session.send(stream, bytes(300 * KIB))
    assert book.says(limit=64 * KIB) == [f"DATA {stream} 65536"]
    assert book.says(limit=64 * KIB) == [f"PING {FIRST_TOKEN + 1}", "ACK 1", f"DATA {stream} 65536"]
