"""Probes by real requests through real tunnels: what they find is what the cluster's state says."""

import asyncio
import itertools
import json
from types import SimpleNamespace

import pytest

from protocol import defaults
from protocol.constants import CONTROL_SERVICE, Code
from tests.tower_server.kit import Agent, admin, call, joined, running
from tests.waiting import until
from tower_server.probing import PACE, PACE_BURST, Probing
from tower_server.tunnels import TunnelRegistry

pytestmark = pytest.mark.asyncio


async def settled(server, name, state):
    await until(lambda: server.member(name).verdict.state == state, what=state)
    return server.member(name).verdict


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(defaults, "PROBE_AGAIN", 0.01)


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
    said = "policy forbids; the owner can add\n  hosts:\n    hq:\nto the policy"
    status = {"kind": "Status", "message": said, "details": {"causes": [{"reason": "TWR406"}]}}
    respond = lambda _: (403, json.dumps(status).encode())  # noqa: E731
    async with running(tmp_path) as server, joined(server, "edge-1", respond=respond):
        verdict = await settled(server, "edge-1", "AuthFailed")
        assert verdict.code == "TWR406"
        assert "policy forbids; the owner can add hosts: hq: to the policy" in verdict.cause, "in one line"
        view = (await admin(server, "GET", "/v1/clusters/edge-1")).json()
        assert "`towerctl manifest edge-1 --no-token " in view["mend"]


async def test_a_refused_dial_is_apiserver_down(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1", respond=None) as agent:
        agent.refusal = (Code.DIAL_FAILED, "10.96.0.1:443: refused")
        verdict = await settled(server, "edge-1", "ApiserverDown")
        assert (verdict.code, "10.96.0.1:443" in verdict.cause) == ("TWR301", True)


async def test_a_silent_member_is_found_within_the_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr("tower_server.probe.DEADLINE", 0.2)
    async with running(tmp_path) as server, joined(server, "edge-1", respond=None):
        verdict = await settled(server, "edge-1", "ApiserverDown")
        assert verdict.code == "TWR303"
        assert "was not opened" in verdict.cause


@pytest.mark.parametrize("answers", [True, False], ids=["keeps the connection open", "never answers"])
async def test_a_probe_leaves_no_stream_behind(tmp_path, monkeypatch, answers):
    monkeypatch.setattr("tower_server.probe.DEADLINE", 0.2 if not answers else 5.0)
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await settled(server, "edge-1", "Connected")
        if not answers:
            agent.tunnel.on_stream = lambda incoming: incoming.accept(asyncio.Protocol())
        result = await server.services.probing.now(server.member("edge-1"))
        assert (result.ok, result.code) == ((True, "") if answers else (False, "TWR303"))
        theirs = server.member("edge-1").serving[0]
        for tunnel in (theirs, agent.tunnel):
            await until(lambda tunnel=tunnel: {each.service for each in tunnel.streams()} == {CONTROL_SERVICE})


async def test_a_probe_that_its_tunnel_takes_along_says_nothing_of_the_apiserver(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await settled(server, "edge-1", "Connected")
        agent.respond = None  # from now on no stream is accepted
        member, asked = server.member("edge-1"), len(agent.incoming)
        probing = asyncio.create_task(server.services.probing.now(member))
        await until(lambda: len(agent.incoming) > asked)
        await agent.close()
        assert await probing is None
        assert member.probe.ok, "what it says last is what an apiserver said"
        assert (await settled(server, "edge-1", "TunnelDown")).code == "TWR201"


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


@pytest.fixture
def rare(monkeypatch):
    """No probe comes by its turn; those that somebody asks for come at most every fifth of a second."""
    monkeypatch.setattr(defaults, "PROBE_INTERVAL", 3600.0)
    monkeypatch.setattr(defaults, "PROBE_AGAIN", 0.2)


async def test_what_an_agent_says_of_its_apiserver_is_looked_into_before_its_turn(tmp_path, rare):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await settled(server, "edge-1", "Connected")
        agent.respond = lambda _: (500, b"[-]etcd failed")
        await agent.report(probe={"ready": False, "code": "TWR302", "text": "etcd failed"})
        assert (await settled(server, "edge-1", "ApiserverDown")).code == "TWR302"


@pytest.mark.slow
async def test_an_agent_that_cries_wolf_brings_about_no_flood_of_probes(tmp_path, rare):
    heads = []
    respond = lambda head: heads.append(head) or (200, b"ok")  # noqa: E731
    async with running(tmp_path) as server, joined(server, "edge-1", respond=respond) as agent:
        await settled(server, "edge-1", "Connected")
        (tunnel,) = server.member("edge-1").tunnels
        begun, count = [tunnel.data["probed"]], 0
        while len(begun) < 4:
            await agent.report(probe={"ready": bool(count % 2)})
            await asyncio.sleep(0.001)
            count += 1
            if tunnel.data["probed"] != begun[-1]:
                begun.append(tunnel.data["probed"])
        # A difference of two floats that are hours large: what is 0.2 apart may come out a hair below.
        assert min(later - earlier for earlier, later in itertools.pairwise(begun)) > 0.199
        assert count > 10
        before = len(heads)
        for _ in range(20):  # it goes on to say what it has said
            await agent.report(probe={"ready": False})
        async with asyncio.timeout(30):  # more than the server listens to: what it leaves out, the next report says
            while not server.member("edge-1").report.get("last"):
                await agent.report(probe={"ready": True}, last=True)
                await asyncio.sleep(0.05)
        assert len(heads) <= before + 2
        assert server.member("edge-1").verdict.state == "Connected", "its word alone ends nothing"


async def test_a_callers_stream_that_found_no_apiserver_is_looked_into_before_its_turn(tmp_path, rare):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await settled(server, "edge-1", "Connected")
        agent.refusal = (Code.DIAL_FAILED, "10.96.0.1:443: refused")
        assert (await call(server, "edge-1")).status == 502
        assert (await settled(server, "edge-1", "ApiserverDown")).code == "TWR301"


@pytest.mark.slow
async def test_the_tunnel_whose_agent_complains_is_the_one_that_is_looked_into(tmp_path, rare):
    async with running(tmp_path) as server, joined(server, "edge-1") as good:
        await settled(server, "edge-1", "Connected")
        bad = Agent(server, good.identity)
        await bad.connect()
        member = server.member("edge-1")
        await until(lambda: len(member.tunnels) == 2 and all("probed" in each.data for each in member.tunnels))
        for _ in range(2):  # whichever had its turn last
            bad.respond = lambda _: (500, b"broken")
            await bad.report(probe={"ready": False})
            await until(lambda: any(each.data.get("failing") for each in member.tunnels))
            await until(lambda: member.probe.ok)
            assert member.pick().instance == good.instance
            bad.respond = lambda _: (200, b"ok")
            await bad.report(probe={"ready": True})
            server.services.probing.soon("edge-1")
            await until(lambda: not any(each.data.get("failing") for each in member.tunnels))
        await bad.close()
