"""One leader at a time: by a lease that others write too, over clocks that nobody compares and calls that get lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random

import pytest
from hypothesis import given, strategies

from daemon.faults import TowerError
from daemon.log import configure
from tests.lab.examples import examples
from tests.tower_server.controller.disorder import VirtualLoop
from tests.waiting import until
from tower_server.election import Elector, Held, LeaseConflict, Timing

TIMING = Timing(duration=15.0, renew_deadline=10.0, retry=2.0)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Stored:
    """The apiserver's side of a lease: versions, and whatever a test wants to go wrong."""

    def __init__(self) -> None:
        self.lease: Held | None = None
        self.count = 0
        self.writes = 0
        self.lost_requests = 0
        self.lost_answers = 0
        self.delay = 0.0
        self.clocks: list[Clock] = []

    def _late(self) -> None:
        for clock in self.clocks:
            clock.now += self.delay

    async def read(self) -> Held | None:
        return self.lease

    async def write(self, lease: Held) -> Held:
        self.writes += 1
        if self.lost_requests:
            self.lost_requests -= 1
            raise TowerError("TWR114", "no answer")
        if (self.lease.version if self.lease else "") != lease.version:
            raise LeaseConflict("another was first")
        self.count += 1
        self.lease = Held(lease.holder, lease.term, lease.duration, str(self.count))
        self._late()
        if self.lost_answers:
            self.lost_answers -= 1
            raise TowerError("TWR114", "no answer")
        return self.lease


def elector(stored: Stored, name: str, clock: Clock) -> Elector:
    stored.clocks.append(clock)
    return Elector(stored, identity=name, timing=TIMING, random=lambda: 0.5, clock=clock)


@pytest.mark.asyncio
async def test_the_first_takes_it_and_the_second_waits():
    stored, clock = Stored(), Clock()
    first, second = elector(stored, "a", clock), elector(stored, "b", clock)
    assert await first.attempt() == 1
    assert await second.attempt() is None
    assert second.holder == "a"


@pytest.mark.asyncio
async def test_a_leader_counts_from_before_the_call_that_renewed():
    stored, clock = Stored(), Clock()
    first = elector(stored, "a", clock)
    stored.delay = 7.0
    await first.attempt()
    assert first.term == 1
    clock.now += 2.9
    assert first.term == 1
    clock.now += 0.2
    assert first.term is None, "seven seconds of the ten had gone when the answer came"


@pytest.mark.asyncio
async def test_a_leader_whose_apiserver_takes_two_seconds_for_each_call_goes_on():
    clock = Clock()

    class Slow(Stored):
        async def read(self) -> Held | None:
            self._late()
            return await super().read()

        async def write(self, lease: Held) -> Held:
            written = await super().write(lease)
            led.append(first.term)
            return written

    stored, led = Slow(), list[int | None]()
    first = elector(stored, "a", clock)
    stored.delay = 2.0
    for _ in range(10):
        assert await first.attempt() == 1
        clock.now += TIMING.retry
    assert led == [None] + [1] * 9, "at no renewal was its time over before the answer came"


class Far(Stored):
    """Each call takes 4.8 s."""

    async def read(self) -> Held | None:
        await asyncio.sleep(4.8)
        return self.lease

    async def write(self, lease: Held) -> Held:
        await asyncio.sleep(4.3)
        written = await super().write(lease)
        await asyncio.sleep(0.5)
        return written


def test_a_leader_whose_apiserver_takes_more_than_four_seconds_for_each_call_keeps_its_term():
    stored, led = Far(), list[tuple[int, int | None]]()
    stored.lease = Held("dead", 1, 15.0, "0")

    async def play() -> None:
        clock = asyncio.get_running_loop().time
        candidate = Elector(stored, identity="a", timing=TIMING, random=lambda: 0.5, clock=clock)

        async def lead(term: int) -> None:
            while True:
                led.append((term, candidate.term))
                await asyncio.sleep(0.5)

        task = asyncio.create_task(candidate.run(lead))
        await asyncio.sleep(300.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(play())
    assert len(led) > 500
    assert set(led) == {(2, 2)}, "it may write at every moment from the first on"


@pytest.mark.asyncio
async def test_a_silent_leader_is_over_before_the_next_one_begins():
    stored, clock = Stored(), Clock()
    first, second = elector(stored, "a", clock), elector(stored, "b", clock)
    await first.attempt()
    await second.attempt()
    clock.now += 14.9
    assert first.term is None
    assert await second.attempt() is None
    clock.now += 0.2
    assert await second.attempt() == 2


@pytest.mark.asyncio
async def test_each_renewal_that_is_seen_starts_the_followers_wait_anew():
    stored, clock = Stored(), Clock()
    first, second = elector(stored, "a", clock), elector(stored, "b", clock)
    for _ in range(10):
        await first.attempt()
        assert await second.attempt() is None
        clock.now += 9.0
    assert first.term == 1


@pytest.mark.asyncio
async def test_a_lease_that_was_given_back_is_taken_at_once():
    stored, clock = Stored(), Clock()
    first, second = elector(stored, "a", clock), elector(stored, "b", clock)
    await first.attempt()
    await second.attempt()
    await first.release()
    assert first.term is None
    assert await second.attempt() == 2


@pytest.mark.asyncio
async def test_the_lease_of_one_who_is_known_to_be_gone_is_taken_at_once_or_after_a_renewal_is_missed():
    stored, clock = Stored(), Clock()
    first = elector(stored, "a", clock)
    known: dict[str, float | None] = {}
    second = Elector(stored, identity="b", timing=TIMING, random=lambda: 0.5, clock=clock, grace=known.get)
    await first.attempt()
    assert await second.attempt() is None, "nothing is known of it"
    known["a"] = 3.0
    clock.now += 2.9
    assert await second.attempt() is None
    await first.attempt()
    clock.now += 2.9
    assert await second.attempt() is None, "it has renewed: it lives"
    clock.now += 0.2
    assert await second.attempt() is None, "counted from when the renewal was seen"
    clock.now += 3.0
    assert await second.attempt() == 2
    stored.lease = Held("c", 3, 15.0, "9")
    known["c"] = 0.0
    assert await second.attempt() == 4
    known["b"] = 0.0
    assert await first.attempt() is None, "what one knows is of no use to another"
    assert first.term is None


@pytest.mark.asyncio
async def test_word_of_the_leaders_end_does_not_wait_for_the_next_look():
    stored, led = Stored(), asyncio.Event()
    stored.lease = Held("a", 7, 600.0, "1")
    known: dict[str, float | None] = {}
    looks = 0

    class Watched(Stored):
        async def read(self) -> Held | None:
            nonlocal looks
            looks += 1
            return await stored.read()

        async def write(self, lease: Held) -> Held:
            return await stored.write(lease)

    slow = Timing(duration=600.0, renew_deadline=500.0, retry=400.0)
    second = Elector(Watched(), identity="b", timing=slow, random=lambda: 0.5, grace=known.get)

    async def lead(_term: int) -> None:
        led.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(second.run(lead))
    async with asyncio.timeout(20.0):
        while not looks:
            await asyncio.sleep(0)
        second.wake()
        while looks < 2:
            await asyncio.sleep(0)
        assert not led.is_set(), "a look is not a reason to lead"
        known["a"] = 0.0
        second.wake()
        await led.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.asyncio
async def test_of_two_that_take_it_at_once_one_wins():
    stored, clock = Stored(), Clock()
    stored.lease = Held("dead", 7, 15.0, "0")
    first, second = elector(stored, "a", clock), elector(stored, "b", clock)
    await first.attempt()
    await second.attempt()
    clock.now += 15.1
    seen = stored.lease

    class Stale(Stored):
        async def read(self) -> Held | None:
            return seen

        async def write(self, lease: Held) -> Held:
            return await stored.write(lease)

    second._lease = Stale()
    assert await first.attempt() == 8
    assert await second.attempt() is None


@pytest.mark.asyncio
async def test_a_renewal_whose_answer_was_lost_goes_on_where_it_is():
    stored, clock = Stored(), Clock()
    first = elector(stored, "a", clock)
    await first.attempt()
    stored.lost_answers = 1
    clock.now += 2.0
    with pytest.raises(TowerError):
        await first.attempt()
    assert first.term == 1
    clock.now += 2.0
    assert await first.attempt() == 1
    clock.now += 9.9
    assert first.term == 1


@pytest.mark.asyncio
async def test_a_lease_that_somebody_edited_or_deleted_has_one_leader_again():
    stored, clock = Stored(), Clock()
    first, second = elector(stored, "a", clock), elector(stored, "b", clock)
    await first.attempt()
    stored.lease = None
    assert await first.attempt() == 1
    stored.lease = Held("", 40, 0.0, "edited")
    assert await second.attempt() == 41
    assert await first.attempt() is None
    assert first.term is None


STEPS = strategies.lists(
    strategies.tuples(
        strategies.sampled_from(["attempt", "attempt", "attempt", "release", "lose request", "lose answer", "sleep"]),
        strategies.integers(0, 2),
        strategies.floats(0.0, 12.0),
    ),
    max_size=60,
)


@examples(150)
@given(STEPS)
def test_never_two_leaders_whatever_is_lost_or_late(steps):
    """Three candidates with clocks of their own that run on while calls are under way."""

    async def play() -> None:
        stored = Stored()
        clocks = [Clock(), Clock(), Clock()]
        for number, clock in enumerate(clocks):
            clock.now += 1e6 * number
        candidates = [elector(stored, f"c{number}", clock) for number, clock in enumerate(clocks)]
        terms: dict[int, int] = {}
        for step, number, seconds in steps:
            stored.delay = seconds / 3 if step == "attempt" else 0.0
            stored.lost_requests = int(step == "lose request")
            stored.lost_answers = int(step == "lose answer")
            if step == "release":
                await candidates[number].release()
            elif step == "sleep":
                for clock in clocks:
                    clock.now += seconds
            else:
                try:
                    await candidates[number].attempt()
                except TowerError:
                    pass
            leading = [each for each, candidate in enumerate(candidates) if candidate.term is not None]
            assert len(leading) <= 1
            for each in leading:
                term = candidates[each].term
                assert term is not None
                assert terms.setdefault(term, each) == each, "a term belongs to one"

    asyncio.run(play())


def quick(stored: Stored, name: str) -> Elector:
    timing = Timing(duration=0.6, renew_deadline=0.4, retry=0.05)
    return Elector(stored, identity=name, timing=timing, random=random.random)


@pytest.mark.asyncio
async def test_work_runs_while_leading_and_is_cancelled_when_the_lease_cannot_be_renewed():
    stored = Stored()
    began, ended = asyncio.Event(), asyncio.Event()

    async def lead(term: int) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(quick(stored, "a").run(lead))
    async with asyncio.timeout(20):
        await began.wait()
        stored.lost_requests = 10**6
        await ended.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_an_apiserver_that_stays_away_is_said_once_and_again_when_it_was_back(capsys):
    configure(style="json")
    stored = Stored()
    stored.lost_requests = 10**6
    candidate = quick(stored, "a")

    async def lead(_term: int) -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(candidate.run(lead))
    try:
        await until(lambda: stored.writes >= 6)
        stored.lost_requests = 0
        await until(lambda: candidate.term == 1)
        stored.lost_requests = 10**6
        await until(lambda: candidate.term is None)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    said = [line["text"] for line in lines if line["event"] == "lease-not-reached"]
    assert len(said) == 2
    assert all("TWR114: no answer" in text for text in said)


@pytest.mark.asyncio
async def test_stopping_gives_the_lease_to_the_next_at_once():
    stored = Stored()
    led: asyncio.Queue[str] = asyncio.Queue()

    def leads(name: str):
        async def lead(_: int) -> None:
            led.put_nowait(name)
            await asyncio.Event().wait()

        return lead

    first = asyncio.create_task(quick(stored, "a").run(leads("a")))
    async with asyncio.timeout(20):
        assert await led.get() == "a"
        second = asyncio.create_task(quick(stored, "b").run(leads("b")))
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert stored.lease is not None
        assert stored.lease.holder in ("", "b")
        assert await led.get() == "b"
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)


class Slow(Stored):
    """One write of whose end nothing is heard: it is done at once, or a little `late`."""

    def __init__(self) -> None:
        super().__init__()
        self.next, self.late = False, False
        self.under_way = asyncio.Event()

    async def write(self, lease: Held) -> Held:
        if not self.next:
            return await super().write(lease)
        self.next = False
        task = asyncio.create_task(self._done(lease))
        if not self.late:
            await task
        self.under_way.set()
        return await asyncio.get_running_loop().create_future()

    async def _done(self, lease: Held) -> None:
        await asyncio.sleep(0.02 if self.late else 0)
        with contextlib.suppress(LeaseConflict):
            await super().write(lease)

    async def read(self) -> Held | None:
        await asyncio.sleep(0.01)
        return await super().read()


@pytest.mark.asyncio
@pytest.mark.parametrize("which", ["the first", "a renewal", "a late renewal"])
async def test_an_end_that_comes_while_a_write_is_on_its_way_gives_the_lease_back_too(which: str):
    stored, leads = Slow(), asyncio.Event()

    async def lead(_: int) -> None:
        leads.set()
        await asyncio.Event().wait()

    stored.next = which == "the first"
    task = asyncio.create_task(quick(stored, "a").run(lead))
    async with asyncio.timeout(20):
        if which != "the first":
            await leads.wait()
            stored.next, stored.late = True, which == "a late renewal"
        await stored.under_way.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.05)
    assert stored.lease is not None
    assert stored.lease.holder == ""


def test_times_that_would_let_two_lead_are_refused():
    with pytest.raises(ValueError, match="renew_deadline < duration"):
        Timing(duration=10.0, renew_deadline=10.0, retry=1.0)
