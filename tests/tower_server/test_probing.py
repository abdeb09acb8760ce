"""Probes by real requests through real tunnels: what they find is what the cluster's state says."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from protocol.constants import Code
from tests.tower_server.kit import Agent, admin, joined, running, until
from tower_server.probing import PACE, PACE_BURST, Probing
from tower_server.tunnels import TunnelRegistry

pytestmark = pytest.mark.asyncio


async def settled(server, name, state):
    await until(lambda: server.member(name).verdict.state == state, what=state)
    return server.member(name).verdict


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr("tower_server.probing.AGAIN_AFTER", 0.0)


async def test_the_probe_is_an_ordinary_request_of_its_own_user(tmp_path):
    heads = []
    async with running(tmp_path) as server:
        async with joined(server, "edge-1", respond=lambda head: heads.append(head) or (200, b"ok")) as agent:
            await settled(server, "edge-1", "Connected")
            assert heads[0].startswith(b"GET /readyz HTTP/1.1\r\nHost: edge-1.members.tower\r\n")
            assert next(each.caller for each in agent.incoming if each.service == "kubernetes") == "tower:probe"
        assert server.services.credential.user == "tower:hq:probe"


async def test_an_apiserver_that_is_not_ready_is_apiserver_down_with_its_words(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1", respond=lambda _: (500, b"[-]etcd failed")):
        verdict = await settled(server, "edge-1", "ApiserverDown")
        assert (verdict.ready, verdict.code) == ("False", "TWR302")
        assert "[-]etcd failed" in verdict.cause


async def test_a_status_of_the_agents_own_is_taken_by_its_code(tmp_path):
    status = {"kind": "Status", "message": "policy forbids", "details": {"causes": [{"reason": "TWR406"}]}}
    respond = lambda _: (403, json.dumps(status).encode())  # noqa: E731
    async with running(tmp_path) as server, joined(server, "edge-1", respond=respond):
        verdict = await settled(server, "edge-1", "AuthFailed")
        assert (verdict.code, "policy forbids" in verdict.cause) == ("TWR406", True)
        view = (await admin(server, "GET", "/v1/clusters/edge-1")).json()
        assert "`towerctl manifest edge-1`" in view["mend"]


async def test_a_refused_dial_is_apiserver_down(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1", respond=None) as agent:
        agent.refusal = (Code.DIAL_FAILED, "10.96.0.1:443: refused")
        verdict = await settled(server, "edge-1", "ApiserverDown")
        assert (verdict.code, "10.96.0.1:443" in verdict.cause) == ("TWR301", True)


async def test_a_silent_member_is_found_within_the_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr("tower_server.probe.probe.__kwdefaults__", {"deadline": 0.2})
    async with running(tmp_path) as server, joined(server, "edge-1", respond=None):
        verdict = await settled(server, "edge-1", "ApiserverDown")
        assert verdict.code == "TWR303"
        assert "was not opened" in verdict.cause


async def test_garbage_in_place_of_http_is_named(tmp_path):
    respond = lambda _: (200, b"")  # noqa: E731
    async with running(tmp_path) as server, joined(server, "edge-1", respond=respond) as agent:
        await settled(server, "edge-1", "Connected")
        agent.respond = lambda _: (99999, b"")
        server.services.probing.soon("edge-1")
        assert (await settled(server, "edge-1", "ApiserverDown")).code == "TWR306"


async def test_one_bad_tunnel_of_two_degrades_and_gets_no_callers(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as good:
        bad = Agent(server, good.identity, respond=lambda _: (500, b"broken"))
        await bad.connect()
        await until(lambda: any(tunnel.data.get("failing") for _, tunnel in server.services.registry))
        await until(lambda: server.member("edge-1").probe.ok)
        verdict = await settled(server, "edge-1", "Degraded")
        assert (verdict.ready, verdict.code) == ("True", "TWR202")
        assert server.member("edge-1").pick().instance == good.instance
        await bad.close()


async def test_a_recovery_is_seen_and_the_cause_goes(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1", respond=lambda _: (500, b"no")) as agent:
        await settled(server, "edge-1", "ApiserverDown")
        agent.respond = lambda _: (200, b"ok")
        server.services.probing.soon("edge-1")
        await settled(server, "edge-1", "Connected")
        view = (await admin(server, "GET", "/v1/clusters/edge-1")).json()
        assert (view["code"], view["cause"], view["mend"]) == (None, None, None)


async def test_probes_of_many_clusters_begin_at_a_pace():
    begun = []

    def start(work, name):
        work.close()
        begun.append(name)

    registry = TunnelRegistry()
    for number in range(40):
        name = f"edge-{number}"
        registry.members[name] = SimpleNamespace(name=name, serving=[object()], tick=lambda: None)
    probing = Probing(registry, credential=None, start=start)
    loop = asyncio.get_running_loop()
    began = loop.time()
    running = asyncio.create_task(probing.run())
    for name in registry.members:
        probing.soon(name)
    await until(lambda: len(begun) == 40)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert loop.time() - began >= 0.9 * (40 - PACE_BURST) / PACE
    assert sorted(begun) == sorted(f"probe-{name}" for name in registry.members), "each once"
