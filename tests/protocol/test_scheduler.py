"""Who sends next: fair to the byte between streams that wait, and small frames on a slow link."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.constants import HEADER, HEADER_SIZE, FrameType
from protocol.defaults import KIB, MAX_FRAME_PAYLOAD, MIB
from protocol.flow import Budget, Limits, ReceiveCredit
from protocol.scheduler import CHUNK, CHUNK_SECONDS, FRAME_SECONDS, LEAST_CHUNK, MIN_FRAME, QUANTUM, Buffer, Scheduler
from protocol.streams import State, Stream
from tests.lab.examples import examples


def stream(number: int, *pieces: int, limit: int = 2**40, fin: bool = False) -> Stream:
    """A stream with bytes of `number` waiting."""
    made = Stream(number, State.OPEN, ReceiveCredit(Budget(MIB), Limits()), send_limit=limit)
    made.queue.extend(bytes((number,)) * size for size in pieces)
    made.queued = sum(pieces)
    made.fin_queued = fin
    return made


def sent(out: list[Buffer]) -> list[tuple[int, int, bytes]]:
    """(type, stream, payload) of whole frames."""
    raw, found = b"".join(out), []
    while raw:
        kind, _, _, number, length = HEADER.unpack_from(raw)
        found.append((kind, number, raw[HEADER_SIZE : HEADER_SIZE + length]))
        raw = raw[HEADER_SIZE + length :]
    return found


@examples(40)
@given(
    pieces=st.lists(st.lists(st.integers(1, 200 * KIB), min_size=8, max_size=12), min_size=2, max_size=4),
    limits=st.lists(st.integers(1, 300 * KIB), min_size=1, max_size=30),
)
def test_two_streams_that_wait_never_differ_by_more_than_two_quanta_and_a_frame(pieces, limits) -> None:
    scheduler = Scheduler()
    streams = [stream(n + 1, *sizes) for n, sizes in enumerate(pieces)]
    for one in streams:
        scheduler.schedule(one)
    moved: Counter[int] = Counter({one.id: 0 for one in streams})
    for limit in limits:
        out: list[Buffer] = []
        scheduler.fill(out, limit, 0.0)
        for _, number, payload in sent(out):
            moved[number] += len(payload)
            assert set(payload) == {number}
        if not all(one.sendable for one in streams):
            break
        assert max(moved.values()) - min(moved.values()) <= 2 * QUANTUM + MAX_FRAME_PAYLOAD


@pytest.mark.parametrize(("rate", "frames"), [(None, 1), (40e6, 1), (60e6, 4)])
def test_a_turn_on_a_fast_link_is_as_long_as_what_it_is_given_at_a_time(rate: float | None, frames: int) -> None:
    scheduler = Scheduler()
    scheduler.rate = rate
    for number in range(1, 4):
        scheduler.schedule(stream(number, 4 * MIB))
    out: list[Buffer] = []
    scheduler.fill(out, 3 * CHUNK, 0.0)
    turns = [(number, len(list(of))) for number, of in groupby(number for _, number, _ in sent(out))]
    assert turns[:3] == [(1, frames), (2, frames), (3, frames)]


def test_only_who_has_had_no_turn_goes_early() -> None:
    scheduler, bulk, small = Scheduler(), stream(1, 4 * MIB), stream(2, 1500)
    scheduler.schedule(bulk)
    scheduler.fill([], 2 * QUANTUM, 0.0)
    assert not scheduler.early
    assert not scheduler.fill([], MIB, 0.0, early=True)
    scheduler.schedule(small)
    assert scheduler.early
    out: list[Buffer] = []
    scheduler.fill(out, MIB, 0.0, early=True)
    assert [(number, len(data)) for _, number, data in sent(out)] == [(2, 1500)]
    assert not scheduler.early
    gone = stream(3, 1500)
    scheduler.schedule(gone)
    scheduler.remove(gone)
    assert not scheduler.early, "what was removed leaves its turn to nobody"


def test_a_small_answer_does_not_wait_behind_bulk() -> None:
    scheduler = Scheduler()
    bulk, small = stream(1, 10 * MIB), stream(2, 100)
    scheduler.schedule(bulk)
    scheduler.fill([], 256 * KIB, 0.0)
    scheduler.schedule(small)
    out: list[Buffer] = []
    scheduler.fill(out, 256 * KIB, 0.0)
    ahead = [payload for _, number, payload in sent(out)][: [n for _, n, _ in sent(out)].index(2)]
    assert sum(map(len, ahead)) <= QUANTUM


@pytest.mark.slow
def test_a_stream_that_had_nothing_does_not_wait_for_the_round_of_many_but_gets_no_more_than_its_share() -> None:
    scheduler = Scheduler()
    bulk = [stream(number, 50 * MIB) for number in range(1, 11)]
    for one in bulk:
        scheduler.schedule(one)
    scheduler.fill([], MIB, 0.0)
    small, other = stream(11, 100), stream(12, 100)
    out: list[Buffer] = []
    for one in (small, other):
        scheduler.schedule(one)
    scheduler.fill(out, 64 * KIB, 0.0)
    assert [number for _, number, _ in sent(out)][:2] == [11, 12]
    moved: Counter[int] = Counter()
    while moved[1] < 10 * MIB:  # one that comes back at once, whenever it has sent, is as good as one that waits
        small.queue.append(bytes(50 * KIB))
        small.queued += 50 * KIB
        scheduler.schedule(small)
        out.clear()
        scheduler.fill(out, 100 * KIB, 0.0)
        for _, number, payload in sent(out):
            moved[number] += len(payload)
    assert moved[11] <= moved[1] + 2 * QUANTUM + MAX_FRAME_PAYLOAD
    assert max(moved[n] for n in range(1, 11)) - min(moved[n] for n in range(1, 11)) <= 2 * QUANTUM + MAX_FRAME_PAYLOAD


def test_bytes_leave_in_order_and_fin_last() -> None:
    scheduler = Scheduler()
    one = stream(1, fin=True)
    whole = bytes(range(256)) * 1000
    one.queue.extend([whole[:7], memoryview(whole)[7:150_000], whole[150_000:]])
    one.queued = len(whole)
    scheduler.schedule(one)
    out: list[Buffer] = []
    while scheduler.ready:
        scheduler.fill(out, 1000, 0.0)
    frames = sent(out)
    assert b"".join(payload for _, _, payload in frames) == whole
    assert [kind for kind, _, _ in frames[:-1]] == [FrameType.DATA] * (len(frames) - 1)
    assert frames[-1] == (FrameType.FIN, 1, b"")
    assert all(payload for _, _, payload in frames[:-1]), "no empty DATA"
    assert one.queued == 0


def test_a_fin_takes_its_part_of_what_may_leave() -> None:
    scheduler = Scheduler()
    for number in range(1, 100):
        scheduler.schedule(stream(number, fin=True))
    out: list[Buffer] = []
    scheduler.fill(out, 10, 0.0)
    assert [kind for kind, _, _ in sent(out)] == [FrameType.FIN] * 10


def test_credit_is_never_passed_and_the_stream_waits_for_more() -> None:
    scheduler = Scheduler()
    one = stream(1, 100, limit=30, fin=True)
    scheduler.schedule(one)
    out: list[Buffer] = []
    scheduler.fill(out, MIB, 0.0)
    assert sent(out) == [(FrameType.DATA, 1, b"\1" * 30)]
    assert not scheduler.ready
    scheduler.schedule(one)
    assert not scheduler.ready, "nothing may be sent, so it has no turn"
    one.send_limit = 100
    scheduler.schedule(one)
    scheduler.schedule(one)
    out.clear()
    scheduler.fill(out, MIB, 0.0)
    assert sent(out) == [(FrameType.DATA, 1, b"\1" * 70), (FrameType.FIN, 1, b"")]


def test_a_stream_that_was_removed_sends_nothing() -> None:
    scheduler = Scheduler()
    one, two = stream(1, 100), stream(2, 100)
    scheduler.schedule(one)
    scheduler.schedule(two)
    scheduler.remove(one)
    scheduler.remove(one)
    out: list[Buffer] = []
    scheduler.fill(out, MIB, 0.0)
    assert [number for _, number, _ in sent(out)] == [2]


def slow_link(scheduler: Scheduler, rate: float) -> None:
    """A link that takes `rate` bytes a second, asked for four seconds."""
    now = 0.0
    for _ in range(80):
        scheduler.fill([], int(rate * 0.05), now)
        now += 0.05


def test_the_rate_of_a_link_that_is_the_bottleneck_is_measured() -> None:
    scheduler = Scheduler()
    scheduler.schedule(stream(1, 50 * MIB))
    slow_link(scheduler, 1_000_000)
    assert scheduler.rate == pytest.approx(1_000_000, rel=0.05)


def test_a_slow_link_gets_little_at_a_time_and_a_new_one_as_much_as_any() -> None:
    scheduler = Scheduler()
    assert scheduler.chunk == CHUNK
    scheduler.schedule(stream(1, 50 * MIB))
    slow_link(scheduler, 12_500_000)
    assert scheduler.chunk == pytest.approx(12_500_000 * CHUNK_SECONDS, rel=0.05)
    scheduler.new_link()
    assert scheduler.chunk == CHUNK
    slow_link(scheduler, 125_000)
    assert scheduler.chunk == LEAST_CHUNK, "one write must be worth its while"


def test_a_link_measured_while_it_was_slow_gets_more_at_a_time_once_more_has_arrived() -> None:
    scheduler, bulk = Scheduler(), stream(1, 4 * MIB)
    scheduler.proven(1e9)
    assert scheduler.rate is None, "a link that was never waited for gets as much as any"
    scheduler.schedule(bulk)
    slow_link(scheduler, 125_000)
    scheduler.proven(1e9)
    assert scheduler.chunk == LEAST_CHUNK, "it is the bottleneck now, and measured"
    scheduler.fill([], 8 * MIB, 5.0)  # fast now, so that nothing waits and nothing is measured
    slow = scheduler.rate
    scheduler.proven(None)
    assert scheduler.rate == slow
    scheduler.proven(12_500_000.0)
    assert scheduler.chunk == pytest.approx(12_500_000 * CHUNK_SECONDS, rel=0.05)
    scheduler.proven(1000.0)
    assert scheduler.rate == 12_500_000.0, "an end that sends little says nothing of the link"


def test_an_idle_link_has_no_rate() -> None:
    scheduler = Scheduler()
    for second in range(10):
        scheduler.schedule(stream(1, 1000))
        scheduler.fill([], MIB, float(second))
    assert scheduler.rate is None


def test_on_a_slow_link_frames_shrink_to_fifty_milliseconds_when_others_wait() -> None:
    scheduler = Scheduler()
    one, two = stream(1, 50 * MIB), stream(2, 50 * MIB)
    scheduler.schedule(one)
    slow_link(scheduler, 400_000)
    out: list[Buffer] = []
    scheduler.fill(out, MIB, 4.0)
    assert max(len(payload) for _, _, payload in sent(out)) == MAX_FRAME_PAYLOAD, "alone it need not be polite"
    scheduler.schedule(two)
    out.clear()
    scheduler.fill(out, 256 * KIB, 4.0)
    assert max(len(payload) for _, _, payload in sent(out)) <= 1.1 * 400_000 * FRAME_SECONDS


def test_a_stalled_link_still_sends_frames_of_a_useful_size() -> None:
    scheduler = Scheduler()
    for number in (1, 2):
        scheduler.schedule(stream(number, 50 * MIB))
    for now in range(60):
        scheduler.fill([], 1, float(now))
    out: list[Buffer] = []
    scheduler.fill(out, 256 * KIB, 60.0)
    assert {len(payload) for _, _, payload in sent(out)[1:-1]} <= {MIN_FRAME, MIN_FRAME - 1}
