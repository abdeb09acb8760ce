"""All agents at once, after the server was killed: everybody is let in, whoever has to wait is told how long, and
nothing is left behind. Real processes; the figures of 2,000 agents are `python -m bench.storm`'s."""

from __future__ import annotations

import pytest

from bench.storm import storm

AGENTS = 100
ADMISSION = {"handshakes_per_second": 20, "handshake_burst": 10}  # so little that a hundred cannot come at once


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.asyncio
async def test_a_storm_is_let_in_and_whoever_has_to_wait_is_told_how_long(tmp_path):
    outcome = await storm(tmp_path, AGENTS, admission=ADMISSION)
    assert outcome.seen["failures"] == []
    assert outcome.seen["without"] == {}, outcome.seen["last"]
    assert sum(outcome.seen["with_retry_after"].values()) > 0, "the admission was too wide to see anything"
    assert outcome.left_open == 0
    assert len(outcome.pings) > 0
