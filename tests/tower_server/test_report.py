"""What an agent reports cannot harm whoever reads it, beside it or with it."""

import json

import pytest

from tests.tower_server.kit import admin, joined, running
from tests.waiting import until
from tower_server.report import cleaned

HOSTILE = [
    b'{"version":"\\ud800","policy":{"drift":"\\udfff"},"\\ud800":1,"probe":{"ready":false,"code":"\\ud800","text":"x"}}',
    b'{"version":' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"version":NaN,"nodes":-Infinity,"uid":1e999,"services":' + b"9" * 4000 + b"}",
    b'{"version":"\\u001b]0;owned\\u0007\\u009b2J","policy":{"drift":"\\u001b[2J"}}',
    b'{"version":"' + b"x" * 200_000 + b'"}',
]


@pytest.mark.asyncio
@pytest.mark.parametrize("report", HOSTILE, ids=["surrogates", "depth", "numbers", "terminal", "length"])
async def test_a_hostile_report_costs_no_other_cluster_its_place_in_the_list(tmp_path, report):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent, joined(server, "edge-2"):
        await until(lambda: agent.control is not None and agent.control.transport is not None)
        agent.control.transport.write(b'{"type":"status",' + report[1:] + b"\n")
        await until(lambda: server.member("edge-1").reported_at is not None)
        await until(lambda: server.member("edge-1").probe is not None)
        answer = await admin(server, "GET", "/v1/clusters")
        assert answer.status == 200
        assert [each["name"] for each in answer.json()["items"]] == ["edge-1", "edge-2"]
        assert len(answer.body) < 20_000
        assert answer.body.decode().rstrip("\n").isprintable()
        json.loads(answer.body, parse_constant=pytest.fail)
        assert not server.process.stop.is_set()


def test_an_honest_report_is_kept_as_it_is():
    report = {
        "probe": {"ready": True, "version": "v1.35.4", "uid": "u", "nodes": 3, "text": ""},
        "requests": {"ok": 7, "seconds": 0.25},
        "services": {"kubernetes": {"mode": "gateway"}, "grafana": {"address": "grafana:3000"}},
        "policy": {"drift": None},
        "names": ["é", "中"],
    }
    assert cleaned(report) == report
