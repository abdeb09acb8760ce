"""What is found out of a member in its Go agent's place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protocol import defaults
from tests.tower_server.kit import caller_context
from tests.tower_server.legacy.kit import host
from tests.tower_server.legacy.test_binding import upstreams
from tests.waiting import until
from tower_server.legacy.facts import read_facts

pytestmark = pytest.mark.asyncio
MEMBER = {"gitVersion": "v1.33.1", "metadata": {"uid": "u-1", "remainingItemCount": 4}, "items": [{}]}


async def test_version_uid_and_nodes_are_read_without_reading_the_nodes(tmp_path: Path) -> None:
    async with upstreams(tmp_path) as (backend, pools):
        backend.answer = json.dumps(MEMBER).encode()
        assert await read_facts(pools.impersonation) == {"version": "v1.33.1", "uid": "u-1", "nodes": 5}
        assert sorted(each.first.split()[1] for each in backend.requests) == [
            "/api/v1/namespaces/kube-system",
            "/api/v1/nodes?limit=1",
            "/version",
        ]


@pytest.mark.parametrize("answer", [b"ok", b"{}", b'{"metadata": 1, "items": 2, "gitVersion": 3}', b"[" * 9999])
async def test_an_answer_of_another_form_is_not_known(tmp_path: Path, answer: bytes) -> None:
    async with upstreams(tmp_path) as (backend, pools):
        backend.answer = answer
        assert await read_facts(pools.impersonation) == {}


async def test_a_member_with_a_go_agent_is_listed_like_any_other(tmp_path: Path) -> None:
    async with host(tmp_path) as tower:
        tower.backend.answer = json.dumps(MEMBER).encode()
        await tower.registered()
        await until(lambda: tower.member.report.get("nodes") == 5)
        view = await tower.view()
        assert {key: view["member"][key] for key in ("version", "uid", "nodes")} == {
            "version": "v1.33.1",
            "uid": "u-1",
            "nodes": 5,
        }
        assert "kubernetes" in view["member"]["services"]
        (asked,) = tower.backend.to("/version")
        assert asked.certificate == "agent-of-the-member"
        await tower.registered()  # one more: it is known, and not asked again so soon
        await until(lambda: len(tower.member.tunnels) == 2)
        tower.running.server._parts.legacy.housekeeping()
        assert tower.member.report["version"] == "v1.33.1"
        assert len(tower.backend.to("/version")) == 1


@pytest.mark.slow
async def test_an_apiserver_that_fails_a_caller_is_looked_into_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "PROBE_INTERVAL", 3600.0)
    async with host(tmp_path) as tower:
        await tower.registered()
        await until(lambda: tower.member.verdict.state == "Connected")
        probes = len(tower.backend.to("/readyz"))
        tower.backend.server.close()  # what is connected stays, and the probe comes by that
        answer = await tower.ask("/one", "Authorization: Bearer x", context=caller_context(tower.running))
        assert answer.status == 502
        await until(lambda: len(tower.backend.to("/readyz")) > probes)
