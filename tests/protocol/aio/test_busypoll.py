"""Polling between messages that follow one another closely: what the loop's next sleep does, seen from a socket."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
from collections.abc import AsyncIterator
from time import monotonic

import pytest
import pytest_asyncio

from protocol.aio import busypoll
from protocol.aio.busypoll import MOST_ASLEEP, PAYS, BusyPoll, busy_poll
from tests.protocol.aio.tunnels import PATIENCE, tower

pytestmark = pytest.mark.asyncio
LONG = 0.02  # a poll that a busy machine does not end before the next message


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the processor was offered to others: once in each turn of a poll."""
    offered: list[float] = []
    give_way = os.sched_yield

    def offer() -> None:
        offered.append(monotonic())
        give_way()

    monkeypatch.setattr(os, "sched_yield", offer)
    return offered


@pytest_asyncio.fixture
async def poll(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BusyPoll]:
    monkeypatch.setattr(busypoll, "POLL", LONG)
    poll = BusyPoll()
    yield poll
    await over(poll)


async def over(poll: BusyPoll) -> None:
    """Wait for the end of a poll."""
    async with asyncio.timeout(PATIENCE):
        while poll.polling:
            await asyncio.sleep(0)


async def test_after_a_message_the_loop_polls_and_lets_others_in_each_time(poll, turns) -> None:
    began = monotonic()
    poll.message(began)
    await over(poll)
    assert turns, "it polls"
    assert monotonic() - began >= LONG
    seen = len(turns)
    await asyncio.sleep(2 * LONG)
    assert len(turns) == seen, "without a message it sleeps"


async def test_while_something_waits_to_leave_nobody_is_let_in_first(poll, turns) -> None:
    poll.message(monotonic())
    poll.held = True
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert poll.polling
    assert not turns
    poll.held = False
    await over(poll)
    assert turns


async def test_each_message_prolongs_the_poll(poll, turns) -> None:
    end = 0.0
    for _ in range(PAYS):
        poll.message(monotonic())
        end = monotonic() + LONG
        await asyncio.sleep(0)
    await over(poll)
    assert monotonic() >= end - 1e-3


async def in_vain(poll: BusyPoll, turns: list[float]) -> int:
    """Messages that are awaited asleep before the next poll, each alone."""
    asleep = 0
    while True:
        turns.clear()
        poll.message(monotonic())
        if poll.polling:
            await over(poll)
            return asleep
        asleep += 1
        assert asleep <= MOST_ASLEEP, "it polls again one day"


async def test_polls_in_vain_become_rare_and_stay_so(poll, turns, monkeypatch) -> None:
    monkeypatch.setattr(busypoll, "POLL", 0.0)
    seen = [await in_vain(poll, turns) for _ in range(10)]
    assert seen[:4] == [0, 1, 3, 7]
    assert seen[-2:] == [MOST_ASLEEP, MOST_ASLEEP]


async def test_a_poll_that_many_messages_joined_is_followed_by_another_at_once(poll, turns, monkeypatch) -> None:
    monkeypatch.setattr(busypoll, "POLL", 0.0)
    for _ in range(3):
        await in_vain(poll, turns)
    while not poll.polling:
        poll.message(monotonic())
    monkeypatch.setattr(busypoll, "POLL", LONG)
    for _ in range(PAYS):
        poll.message(monotonic())
    await over(poll)
    poll.message(monotonic())
    assert poll.polling


async def test_switched_off_it_never_polls(poll, turns) -> None:
    poll.enabled = False
    for _ in range(2 * MOST_ASLEEP):
        poll.message(monotonic())
    assert not poll.polling
    await asyncio.sleep(0)
    assert not turns


async def test_other_work_of_the_loop_goes_on_during_a_poll(poll, turns) -> None:
    loop = asyncio.get_running_loop()
    done: list[str] = []
    poll.message(monotonic())
    loop.call_soon(done.append, "callback")
    loop.call_later(LONG / 10, done.append, "timer")
    await over(poll)
    assert done == ["callback", "timer"]


async def test_a_loop_has_one_and_another_loop_another() -> None:
    other = asyncio.new_event_loop()
    try:
        assert busy_poll(asyncio.get_running_loop()) is busy_poll(asyncio.get_running_loop())
        assert busy_poll(other) is not busy_poll(asyncio.get_running_loop())
    finally:
        other.close()


async def test_a_loop_that_was_closed_is_forgotten() -> None:
    other = asyncio.new_event_loop()
    busy_poll(other).enabled = False
    gone = weakref.ref(other)
    other.close()
    del other
    gc.collect()
    assert gone() is None


async def test_both_ends_of_a_tunnel_count_for_one_another() -> None:
    async with tower() as made:
        for end in await made.pair():
            assert end._link is not None
            assert end._link.proven
