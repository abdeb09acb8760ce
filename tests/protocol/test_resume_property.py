"""The walks of two ends over links that break anywhere: bytes on the way are lost, the ends notice in any order, some
attempts at a new link reach the server only. Everything that holds without cuts holds with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from protocol.constants import FEATURE_ACK, FEATURE_RESUME
from protocol.replay import FLOOR, RESERVE
from protocol.scheduler import FRAME_COST
from tests.lab.examples import examples
from tests.protocol.test_session_property import LIMITS as LIMITS_OF_TWO
from tests.protocol.test_session_property import STEP, TwoEnds, walk

LIMITS = replace(LIMITS_OF_TWO, tunnel_budget=30_000, replay_bytes=12 * FRAME_COST)

parts = st.floats(0.0, 1.0)


class LossyEnds(TwoEnds):
    limits = LIMITS
    features = frozenset({FEATURE_ACK, FEATURE_RESUME})
    process_budget = 50_000

    def __init__(self) -> None:
        super().__init__()
        self.attempts = 1

    @property
    def up(self) -> bool:
        return all(one.session.detached_at is None for one in self.ends)

    @rule(first=parts, second=parts)
    def cut(self, first: float, second: float) -> None:
        """Each end still gets a part of what is on its way, and notices."""
        for end, part in enumerate((first, second)):
            self.lose_link(end, part)

    @rule(part=parts)
    def only_the_agent_notices(self, part: float) -> None:
        self.lose_link(1, part)

    def lose_link(self, end: int, part: float) -> None:
        one = self.ends[end]
        if one.session.detached_at is None:
            self.read(end, round(part * len(one.wire)))
        one.wire.clear()
        one.session.detach(self.now, "cut")
        one.take(one.session.take_events())
        assert one.session.data_to_send(self.now, 1000) == []

    @rule(welcomed=st.booleans())
    def redial(self, welcomed: bool) -> None:
        """The agent comes back, whatever the server believes; its answer may be lost."""
        server, agent = self.ends
        if agent.session.detached_at is None:
            return
        self.attempts += 1
        server.session.attach(self.now, agent.session.frames_received, epoch=self.attempts)
        server.take(server.session.take_events())
        server.wire.clear()
        agent.wire.clear()
        if welcomed:
            agent.session.attach(self.now, server.session.frames_received, epoch=self.attempts)

    def write(self, end: int, limit: int) -> None:
        if not self.up:
            return  # what the server says to an agent that does not listen is lost anyhow
        super().write(end, limit)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for end, one in enumerate(self.ends):
            one.take(one.session.tick(self.now))
            one.session.ping(self.now)
            if self.up:
                self.write(end, 400)
                self.read(1 - end, len(self.ends[1 - end].wire))
        if not self.up and random_enough(self.now):
            self.redial(True)

    def more_moves(self, random: Random) -> dict[Callable[..., None], Callable[[], tuple[Any, ...]]]:
        return {
            self._cut: lambda: (random.random(), random.random()),
            self._agent: lambda: (random.random(),),
            self._redial: lambda: (random.random() < 0.7,),
        }

    def _cut(self, _: int, first: float, second: float) -> None:
        self.cut(first, second)

    def _agent(self, _: int, part: float) -> None:
        self.only_the_agent_notices(part)

    def _redial(self, _: int, welcomed: bool) -> None:
        self.redial(welcomed)

    @invariant()
    def what_is_kept_is_what_is_not_acknowledged(self) -> None:
        for one in self.ends:
            session = one.session
            replay = session._replay
            assert replay is not None
            assert len(replay.kept) == session.frames_sent - session.frames_acked
            assert replay.used == sum(size for size, _, _ in replay.kept)
            assert list(replay.kept)[len(replay.kept) - len(replay.resending) :] == list(replay.resending)
            data = sum(size for size, stream, _ in replay.kept if stream is not None)
            assert data <= LIMITS.replay_bytes + FRAME_COST + LIMITS.max_credit <= FLOOR <= RESERVE

    def pass_time(self) -> None:
        """Acknowledgements are due, which a full replay buffer waits for."""
        self.now += 0.3
        for one in self.ends:
            one.take(one.session.tick(self.now))

    def settle(self) -> None:
        self.lose_link(1, 0.5)
        self.redial(True)
        super().settle()
        for _ in range(3):
            self.wait(STEP)
            for end in (0, 1):
                self.write(end, 4000)
                self.read(1 - end, 4000)


def random_enough(now: float) -> bool:
    """So that no link is away for the whole window, whatever the walk does."""
    return now % 5.0 > 3.0


LossyEnds.TestCase.settings = examples(12, stateful_step_count=40, suppress_health_check=list(HealthCheck))
TestLossyEnds = LossyEnds.TestCase


@pytest.mark.parametrize("seed", range(40))
def test_a_walk_over_links_that_break(seed: int) -> None:
    walk(seed, 150, LossyEnds)


@pytest.mark.slow
def test_many_walks_over_links_that_break() -> None:
    for seed in range(1000, 1300):
        walk(seed, 200, LossyEnds)
