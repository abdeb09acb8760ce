"""Dear work comes in slices: others get their turn between them, and every piece is done once, in order."""

from __future__ import annotations

import asyncio
import itertools
from time import thread_time

import pytest

from protocol.aio.turns import SLICE, Turns

pytestmark = pytest.mark.asyncio


def burn(seconds: float) -> None:
    end = thread_time() + seconds
    while thread_time() < end:
        pass


async def test_others_get_their_turn_between_the_slices() -> None:
    turns, order, beats = Turns(), list[int](), list[int]()

    async def piece(number: int) -> None:
        await turns.do(lambda: (burn(SLICE / 4), order.append(number)))

    pieces = [asyncio.create_task(piece(number)) for number in range(24)]
    await asyncio.sleep(0)
    while len(order) < len(pieces):
        beats.append(len(order))
        await asyncio.sleep(0)
    await asyncio.gather(*pieces)
    assert order == list(range(24))
    slices = [after - before for before, after in itertools.pairwise([*beats, len(order)])]
    assert 1 < max(slices) <= 5


async def test_what_goes_wrong_is_heard_by_whoever_asked_and_by_nobody_else() -> None:
    turns = Turns()

    def wrong() -> None:
        raise ValueError("no")

    bad, good = asyncio.create_task(turns.do(wrong)), asyncio.create_task(turns.do(lambda: 7))
    with pytest.raises(ValueError, match="no"):
        await bad
    assert await good == 7
    assert await turns.do(lambda: 8) == 8


async def test_nobody_is_worked_for_who_waits_no_longer() -> None:
    turns, done = Turns(), list[str]()
    first = asyncio.create_task(turns.do(lambda: done.append("first")))
    second = asyncio.create_task(turns.do(lambda: done.append("second")))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert done == ["second"]
