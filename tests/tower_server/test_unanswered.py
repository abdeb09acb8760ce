"""When an unanswered open is asked of another tunnel, and when it is given up."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace
from typing import Any

import pytest

from protocol import defaults
from tests.waiting import until
from tower_server.unanswered import UnansweredOpen

pytestmark = pytest.mark.asyncio


class World:
    """A member with one tunnel, and what became of an open in it."""

    def __init__(self, *, hold: float = 0.0) -> None:
        self.tunnel: Any = SimpleNamespace(silent=False)
        self.better = False
        self.looks = 0
        self.said: list[str] = []
        self.in_vain: list[Any] = []
        self.member: Any = SimpleNamespace(
            has_better=self._has_better, hold=SimpleNamespace(seconds=hold), waited_in_vain=self.in_vain.append
        )

    def _has_better(self, tunnel: Any) -> bool:
        assert tunnel is self.tunnel
        self.looks += 1
        return self.better

    def open(self, *, may_move: bool = True) -> UnansweredOpen:
        return UnansweredOpen(
            self.member,
            self.tunnel,
            elsewhere=(lambda: self.said.append("elsewhere")) if may_move else None,
            in_vain=self.said.append,
        )


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "STALL_AFTER", 0.02)


async def test_what_does_not_stall_is_waited_for_and_left_once_another_is_better() -> None:
    world = World()
    world.open()
    await until(lambda: world.looks >= 3)
    assert world.said == []
    world.better = world.tunnel.silent = True
    await until(lambda: world.said)
    looks = world.looks
    await asyncio.sleep(0.05)
    assert (world.said, world.looks, world.in_vain) == (["elsewhere"], looks, [])


async def test_a_silent_tunnel_without_a_better_one_is_given_up_after_the_hold_and_that_is_remembered() -> None:
    world = World(hold=0.2)
    world.tunnel.silent = True
    began = asyncio.get_running_loop().time()
    world.open()
    await until(lambda: world.said)
    assert asyncio.get_running_loop().time() - began >= 0.2
    assert re.fullmatch(r"its agent has not answered for \d+\.\d s", world.said[0])
    assert world.in_vain == [world.tunnel]


async def test_who_has_been_elsewhere_often_enough_stays() -> None:
    world = World(hold=0.1)
    world.better = world.tunnel.silent = True
    world.open(may_move=False)
    await until(lambda: world.said)
    assert world.said[0].startswith("its agent has not answered")


async def test_an_answer_ends_it() -> None:
    world = World()
    world.better = world.tunnel.silent = True
    unanswered = world.open()
    unanswered.over()
    unanswered.over()
    await asyncio.sleep(0.1)  # several times what it would have waited
    assert (world.said, world.looks) == ([], 0)
