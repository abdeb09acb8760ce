"""The registry: tunnels of deleted clusters are closed, and a stopping server tells its agents when to come back."""

import pytest

from protocol.constants import Code
from tests.tower_server.kit import Agent, admin, enrol, joined, running, until

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
