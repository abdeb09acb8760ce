"""The registry: tunnels of deleted clusters are closed, and a stopping server tells its agents when to come back."""

import asyncio
import dataclasses

import pytest

from protocol.aio.dial import FEATURES
from protocol.aio.hops import DialError
from protocol.aio.tunnel import Tunnel
from protocol.constants import Code
from tests.tower_server.kit import Agent, admin, enrol, joined, running
from tests.waiting import until

pytestmark = pytest.mark.asyncio


async def test_a_tunnel_of_a_cluster_that_went_during_its_handshake_is_closed(tmp_path):
    async with running(tmp_path) as server:
        agent = Agent(server, await enrol(server, await server.add("edge-1")))
        registry = server.services.registry
        admit = registry.admit

        def deleted_meanwhile(tunnel):
            registry.members.pop("edge-1")
            admit(tunnel)

        server.server._parts.listener.on_tunnel = deleted_meanwhile
        await agent.connect()
        await until(lambda: agent.closed)
        assert agent.closed[0].code is Code.DELETED


async def test_a_revoked_certificate_closes_the_tunnel_that_stands_on_it(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent, joined(server, "edge-2") as other:
        serial = next(t.peer.serial for m, t in server.services.registry if m.name == "edge-1")
        await admin(server, "POST", f"/v1/certificates/{serial:x}/revoke")
        await until(lambda: agent.closed)
        assert agent.closed[0].code is Code.REVOKED
        assert other.closed == []


async def test_a_stopping_server_drains_before_it_closes(tmp_path):
    heard = []
    async with running(tmp_path) as server:
        agent = Agent(server, await enrol(server, await server.add("edge-1")))
        tunnel = await agent.connect()
        tunnel.on_going_away = lambda _tunnel, event: heard.append(event)
    await until(lambda: agent.closed)
    assert heard[0].code is Code.SHUTDOWN
    assert heard[0].deadline == 5
    assert 5 <= heard[0].retry_after <= 5.1  # not before this server is gone, and one agent needs no spreading
    assert agent.closed[0].code is Code.SHUTDOWN


async def test_an_agent_goes_on_with_its_own_tunnel_and_no_other(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1"), joined(server, "edge-2"):
        registry = server.services.registry
        (mine,) = (tunnel for member, tunnel in registry if member.name == "edge-1")
        (others,) = (tunnel for member, tunnel in registry if member.name == "edge-2")
        assert registry.find(mine.id, mine.peer) is mine
        assert registry.find(others.id, mine.peer) is None
        assert registry.find("no such", mine.peer) is None
        assert registry.find(mine.id, dataclasses.replace(mine.peer, agent="sibling")) is None
        mine.close(Code.DELETED, "gone")
        assert registry.find(mine.id, mine.peer) is None


async def test_a_process_that_was_started_anew_takes_the_place_of_the_one_before_and_of_no_sibling(tmp_path):
    async with running(tmp_path) as server:
        identity = await enrol(server, await server.add("edge-1"))
        places = ("host-a1-0001", "host-b2-0001", "host-a1-0002")
        dead, sibling, born = (Agent(server, identity, instance=place, features=FEATURES) for place in places)
        for each in (dead, sibling):
            await each.connect()
        for _, tunnel in server.services.registry:
            tunnel.link_lost("cut by a test")
        before = {tunnel.instance: tunnel for _, tunnel in server.services.registry}
        await born.connect()
        await until(lambda: before["host-a1-0001"].closed)
        assert before["host-a1-0001"].closed.text == "its agent's process was started anew"
        assert before["host-b2-0001"].detached
        for each in (dead, sibling):
            each.tunnel.lose(Code.TUNNEL_LOST, "the test ends")


async def test_an_agent_has_no_more_tunnels_than_its_share_with_or_without_links(tmp_path, monkeypatch):
    monkeypatch.setattr("tower_server.tunnels.MAX_OF_AGENT", 3)
    async with running(tmp_path) as server:
        greedy, modest = [await enrol(server, await server.add(name)) for name in ("edge-1", "edge-2")]
        held = [Agent(server, greedy, instance=f"place-{number}", features=FEATURES) for number in range(3)]
        for each in held:
            await each.connect()
        for _, tunnel in list(server.services.registry):
            tunnel.link_lost("cut by a test")
        with pytest.raises(
            DialError, match=f"the agent {greedy.reply.agent} has 3 tunnels, and 3 are the most"
        ) as full:
            await Agent(server, greedy, instance="elsewhere").connect()
        assert (full.value.code, full.value.retry_after) == (Code.BUSY, 60.0)
        await Agent(server, modest).connect()
        await Agent(server, greedy, instance="place-1").connect()  # in place of the one that it had
        for each in held:
            each.tunnel.lose(Code.TUNNEL_LOST, "the test ends")


async def test_what_became_of_lost_links_is_counted_and_listed(tmp_path):
    async with running(tmp_path) as server:
        agent = Agent(server, await enrol(server, await server.add("edge-1")), features=FEATURES)
        await agent.connect()
        ((member, tunnel),) = list(server.services.registry)
        tunnel.link_lost("cut by a test")
        (listed,) = (await admin(server, "GET", "/v1/tunnels")).json()["items"]
        assert listed["state"] == "Detached"
        tunnel.lose(Code.TUNNEL_LOST, "cut by a test; no new link")
        assert member.history[0].event == "closed"
        text = server.server._metrics.render().decode()
        assert 'tower_tunnel_resumes_total{member_cluster="edge-1",result="expired"} 1.0' in text
        agent.tunnel.lose(Code.TUNNEL_LOST, "the test ends")


@pytest.mark.parametrize("moment", ["welcome on its way", "welcome just read"])
async def test_an_agent_that_stops_as_it_connects_leaves_no_tunnel_that_waits_for_it(tmp_path, monkeypatch, moment):
    loop, seen, held = asyncio.get_running_loop(), [], []
    async with running(tmp_path) as server:
        agent = Agent(server, await enrol(server, await server.add("edge-1")), features=FEATURES)
        dialling = asyncio.create_task(agent.connect())
        server.services.registry.subscribe(lambda _member, tunnel: seen.append(tunnel))
        if moment == "welcome on its way":
            server.services.registry.subscribe(lambda _member, _tunnel: dialling.cancel())
        else:

            def made(**parts):
                tunnel = Tunnel(**parts)
                held.append(tunnel)
                loop.call_soon(dialling.cancel)
                return tunnel

            monkeypatch.setattr("protocol.aio.dial.Tunnel", made)
        with pytest.raises(asyncio.CancelledError):
            await dialling
        await until(lambda: seen and seen[0].closed)
        assert seen[0].closed.code is Code.CANCELLED
        assert seen[0].closed.by_peer
        assert all(tunnel.closed for tunnel in held), "the agent's end is over too"
        verdict = server.member("edge-1").verdict
        assert (verdict.state, "waits no longer" in verdict.cause) == ("TunnelDown", True)


async def test_a_proof_that_comes_late_does_not_take_the_place_of_the_newer_tunnel(tmp_path):
    """The dial was given up by its agent, which has long dialled anew; its bytes were under way all the time."""
    late, going_on = asyncio.Event(), asyncio.Event()
    async with running(tmp_path) as server:
        identity = await enrol(server, await server.add("edge-1"))
        listener = server.server._parts.listener
        authenticate = listener.authenticate

        async def slow(hello, who, remote):
            if not late.is_set():
                late.set()
                await going_on.wait()
            return await authenticate(hello, who, remote)

        listener.authenticate = slow
        first = asyncio.create_task(Agent(server, identity, instance="place-1").connect())
        await late.wait()
        newer = Agent(server, identity, instance="place-1")
        tunnel = await newer.connect()
        going_on.set()
        with pytest.raises(DialError, match="has opened a tunnel since this handshake began") as refused:
            await first
        assert (refused.value.code, refused.value.retry_after) == (Code.REPLACED, 1.0)
        assert await tunnel.ping() < 10
        assert [each.instance for _, each in server.services.registry] == ["place-1"]
        assert newer.closed == []
        sibling = Agent(server, identity, instance="place-1")  # a dial that began after it takes its place as ever
        await sibling.connect()
        await until(lambda: newer.closed)
        assert newer.closed[0].code is Code.REPLACED
