"""The admin API against those who ask wrongly: a clear refusal with code and mend, and nothing else is touched."""

import contextlib
import json

import pytest

from tests.tower_server.kit import admin, call, running
from tower_server.member import Entry

pytestmark = pytest.mark.asyncio


def refusal(answer):
    document = answer.json()
    assert document["kind"] == "Error"
    assert document["message"]
    assert document["mend"]
    return answer.status, document["code"]


async def test_a_foreign_host_is_misdirected(tmp_path):
    cases = ["tower.example.com", "127.0.0.1", "localhost.evil.example", "", "localhost:80:80"]
    async with running(tmp_path) as server:
        for host in cases:
            assert refusal(await admin(server, "GET", "/v1/info", headers={"Host": host})) == (421, "TWR607")


async def test_a_web_page_is_refused(tmp_path):
    async with running(tmp_path) as server:
        for origin in ("https://evil.example", "null", "http://localhost"):
            assert refusal(await admin(server, "GET", "/v1/info", headers={"Origin": origin})) == (403, "TWR607")


async def test_an_unknown_path_is_said_so(tmp_path):
    cases = [
        "/",
        "/v1",
        "/v1/",
        "/v2/clusters",
        "/v1/nothing",
        "/v1/clusters/",
        "/v1/../v1/info",
        "/v1/clusters/a/b/c/d",
        "//v1",
    ]
    async with running(tmp_path) as server:
        for path in cases:
            status, code = refusal(await admin(server, "GET", path))
            assert (status, code) in [(404, "TWR612"), (400, "TWR605")]


async def test_no_name_turns_into_another_path(tmp_path):
    cases = ["%2e%2e", "a%2fping", "..", "a%00", "%ff", "A", "x" * 300]
    async with running(tmp_path) as server:
        await server.add("a")
        for name in cases:
            assert refusal(await admin(server, "GET", f"/v1/clusters/{name}")) == (400, "TWR605")
            assert (await admin(server, "GET", "/v1/clusters/a")).status == 200


async def test_a_wrong_method_names_the_right_ones(tmp_path):
    async with running(tmp_path) as server:
        answer = await admin(server, "PUT", "/v1/clusters")
        assert refusal(answer) == (405, "TWR612")
        assert answer.headers["allow"] == "GET, POST"


async def test_a_bad_body_is_refused(tmp_path):
    cases = [
        (b"{", 400, "TWR605"),
        (b"[]", 400, "TWR605"),
        (b"[" * 100_000, 400, "TWR605"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400, "TWR605"),
        (b"\xff\xfe", 400, "TWR605"),
        (b'{"name": "a", "ttl": 1e999}', 400, "TWR605"),
        (b" " * (10 * 1024 * 1024), 413, "TWR606"),
    ]
    async with running(tmp_path) as server:
        for body, status, code in cases:
            assert refusal(await admin(server, "POST", "/v1/clusters", raw=body)) == (status, code)


async def test_a_wrong_key_is_named(tmp_path):
    cases = [
        ({}, "name"),
        ({"name": 1}, "name"),
        ({"name": "a", "colour": "red"}, "colour"),
        ({"name": "a", "uses": 1.5}, "uses"),
        ({"name": "a", "ttl": "1h"}, "ttl"),
        ({"name": "a", "expected_tunnels": 0}, "expected_tunnels"),
    ]
    async with running(tmp_path) as server:
        for body, key in cases:
            answer = await admin(server, "POST", "/v1/clusters", body)
            assert refusal(answer) == (400, "TWR605")
            assert key in answer.json()["message"]


async def test_a_body_where_none_belongs_and_an_unknown_query_are_refused(tmp_path):
    async with running(tmp_path) as server:
        await server.add("a")
        assert refusal(await admin(server, "POST", "/v1/clusters/a/ping", {"x": 1}))[0] == 400
        answer = await admin(server, "GET", "/v1/clusters?clutser=a")
        assert refusal(answer) == (400, "TWR605")
        assert "clutser" in answer.json()["message"]


async def test_what_is_not_there_is_not_found(tmp_path):
    cases = [
        ("GET", "/v1/clusters/nowhere"),
        ("DELETE", "/v1/clusters/nowhere"),
        ("POST", "/v1/clusters/nowhere/tokens"),
        ("POST", "/v1/clusters/nowhere/ping"),
        ("GET", "/v1/clusters/nowhere/connection"),
        ("POST", "/v1/agents/nowhere/x/revoke"),
        ("DELETE", "/v1/tokens/nothing"),
        ("GET", "/v1/check?cluster=nowhere"),
    ]
    async with running(tmp_path) as server:
        for method, path in cases:
            assert refusal(await admin(server, method, path)) == (404, "TWR603")


async def test_a_head_without_end_is_cut_off(tmp_path):
    async with running(tmp_path) as server:
        with contextlib.suppress(OSError):  # the answer may be lost to what is still being sent
            answer = await admin(server, "GET", "/v1/info", headers={"X": "y" * 2_000_000})
            assert answer.status == 400
        assert (await admin(server, "GET", "/v1/info")).status == 200


async def test_a_defect_is_one_failed_call(tmp_path, monkeypatch):
    async with running(tmp_path) as server:

        async def broken(_services):
            raise ZeroDivisionError

        monkeypatch.setattr("tower_server.admin.calls.info", broken)
        answer = await admin(server, "GET", "/v1/info")
        assert refusal(answer) == (500, "TWR112")
        assert (await admin(server, "GET", "/v1/clusters")).status == 200


async def test_every_answer_is_counted(tmp_path):
    async with running(tmp_path) as server:
        await admin(server, "GET", "/v1/info")
        await admin(server, "GET", "/v1/nothing")
        rendered = server.services.metrics.render()
        assert b'tower_admin_requests_total{code="200"} 1.0' in rendered
        assert b'tower_admin_requests_total{code="404"} 1.0' in rendered
        assert json.loads(json.dumps((await admin(server, "GET", "/v1/info")).json()))["kind"] == "Info"


async def test_a_mend_is_a_command_that_can_be_run_as_it_stands(tmp_path):
    """Of a cluster whose agent was revoked: wherever a person reads what to do, the cluster is named."""
    async with running(tmp_path) as server:
        await server.add("edge-1")
        server.member("edge-1").history.appendleft(Entry(0.0, "opened", "a1", "192.0.2.1:4"))
        server.member("edge-1").refuse("a1", "192.0.2.1:5", "TWR209", "it was revoked", proven=True)
        command = "`towerctl create token edge-1`"
        ping = (await admin(server, "POST", "/v1/clusters/edge-1/ping", body={})).json()
        assert (ping["code"], command in ping["mend"]) == ("TWR209", True), ping
        checked = (await admin(server, "GET", "/v1/check?cluster=edge-1")).json()["items"]
        (tunnel,) = [item for item in checked if item["name"] == "tunnel/edge-1"]
        assert (tunnel["code"], command in tunnel["next"]) == ("TWR209", True), tunnel
        evidence = ["last refused: it was revoked, a1 from 192.0.2.1:5", "last opened: a1 from 192.0.2.1:4"]
        assert tunnel["evidence"] == evidence
        told = (await call(server, "edge-1")).json()
        assert "edge-1" in told["message"]
        assert command in json.dumps(told)
        shown = (await admin(server, "GET", "/v1/clusters/edge-1")).json()
        assert command in shown["mend"]
