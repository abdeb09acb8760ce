"""Without others a server answers as it always did; with several, see tests/tower_server/replicas/test_replicas.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tower_server.kit import admin, joined, running
from tower_server.admin.among import with_others

pytestmark = pytest.mark.asyncio
AGENT = {"cluster": "edge", "name": "a1", "tunnels": 1, "version": None, "remote": None}


async def test_a_single_server_speaks_of_no_others(tmp_path: Path) -> None:
    async with running(tmp_path) as server, joined(server, "edge"):
        for path in ("/v1/tunnels", "/v1/streams", "/v1/agents"):
            answer = (await admin(server, "GET", path)).json()
            assert "unanswered" not in answer
            assert not any("server" in item for item in answer["items"])


async def test_an_agents_tunnels_at_other_servers_count_as_its_own() -> None:
    elsewhere = [
        {"cluster": "edge", "agent": "a1", "version": "1.2", "remote": "192.0.2.1:5"},
        {"cluster": "edge", "agent": "a2"},
        {"cluster": "other", "agent": "a1"},
    ]
    view = with_others(AGENT, elsewhere)
    assert (view["tunnels"], view["version"], view["remote"]) == (2, "1.2", "192.0.2.1:5")
    assert with_others(AGENT, elsewhere[1:]) == AGENT
    known = {**AGENT, "version": "1.1", "remote": "here"}
    assert with_others(known, elsewhere)["version"] == "1.1"
