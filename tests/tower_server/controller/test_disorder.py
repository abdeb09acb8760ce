"""No order in which the watches tell what happened costs a cluster anything. A failure names its seed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from tests.tower_server.controller import disorder
from tower_server.controller import controller

SEEDS = range(14)
RIVALS = range(1000, 1008)  # each takes longer: they depose each other all the time
DEEDS = 24


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "time", SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time()))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_leader_and_the_next_one_that_hear_late_take_nothing_from_a_cluster(seed: int) -> None:
    disorder.play(seed, deeds=DEEDS, rivals=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", RIVALS)
def test_two_that_both_believe_to_lead_take_nothing_from_a_cluster(seed: int) -> None:
    disorder.play(seed, deeds=DEEDS, rivals=True)
