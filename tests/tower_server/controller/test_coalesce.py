"""Many who ask at once cost one call or two, and none of them hears of a time before it asked."""

from __future__ import annotations

import asyncio

import pytest

from tower_server.controller.coalesce import Coalesced

pytestmark = pytest.mark.asyncio


class World:
    """What is there changes while it is asked."""

    def __init__(self) -> None:
        self.now, self.calls, self.fails = 0, 0, 0

    async def look(self) -> int:
        self.calls += 1
        seen = self.now
        await asyncio.sleep(0.01)
        if self.fails:
            self.fails -= 1
            raise OSError("away")
        return seen


async def test_those_who_ask_while_a_call_runs_share_the_next_one() -> None:
    world = World()
    coalesced = Coalesced(world.look)
    first = asyncio.create_task(coalesced.ask())
    await asyncio.sleep(0)
    world.now = 1
    others = [asyncio.create_task(coalesced.ask()) for _ in range(20)]
    assert await first == 0
    assert await asyncio.gather(*others) == [1] * 20, "what was seen before they asked is no answer"
    assert world.calls == 2
    assert await coalesced.ask() == 1
    assert world.calls == 3


async def test_a_call_that_fails_or_is_given_up_is_nobody_elses() -> None:
    world = World()
    world.fails = 1
    coalesced = Coalesced(world.look)
    first, second, third = (asyncio.create_task(coalesced.ask()) for _ in range(3))
    with pytest.raises(OSError, match="away"):
        await first
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert await third == 0
