"""What `tower-agent join` says to the person who ran it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tower_agent.tower import new_tower, serving_tower, state_dir
from tower_agent.config import AgentConfig
from tower_agent.join import join_host


@pytest.mark.asyncio
async def test_it_says_who_it_is_where_that_lies_and_what_is_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = state_dir(tmp_path)
    async with serving_tower(new_tower()) as tower:
        token = tower.token()
        joined = await join_host(AgentConfig(state_dir=folder), f"  {token}\n", wait=5.0)
    said = capsys.readouterr().err
    assert joined.host == "east"
    assert "joined host east as agent a1 of cluster edge, until 2" in said
    assert str(folder / "east" / "identity.json") in said
    assert "next: tower-agent run" in said
    assert token.secret not in said


@pytest.mark.asyncio
async def test_the_same_join_again_says_that_it_was_joined_already(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = state_dir(tmp_path)
    async with serving_tower(new_tower()) as tower:
        token = str(tower.token())
        await join_host(AgentConfig(state_dir=folder), token, wait=5.0)
        assert "already joined" not in capsys.readouterr().err
        await join_host(AgentConfig(state_dir=folder), token, wait=5.0)
    assert "already joined host east as agent a1 of cluster edge, until 2" in capsys.readouterr().err
