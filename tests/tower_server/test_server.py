"""The thin path through everything: a cluster is added, its agent joins, a caller gets through, the state is true."""

import pytest

from tests.tower_server.kit import Agent, admin, call, enrol, joined, running, until

pytestmark = pytest.mark.asyncio


async def test_a_caller_reaches_the_member_and_the_cluster_is_ready(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        agent.respond = lambda head: (200, b"hello " + head.split()[1])
        answer = await call(server, "edge-1", "/version")
        assert (answer.status, answer.body) == (200, b"hello /version")
        await until(lambda: server.member("edge-1").verdict.state == "Connected")
        view = (await admin(server, "GET", "/v1/clusters/edge-1")).json()
        assert (view["ready"], view["state"], view["code"], view["tunnels"]) == ("True", "Connected", None, 1)


async def test_a_restart_keeps_ports_ca_agents_and_tokens(tmp_path):
    async with running(tmp_path) as server:
        token = await server.add("edge-1")
        identity = await enrol(server, token)
        port, ca = server.port("edge-1"), server.services.authority.bundle.fingerprint
        settings = {"ports": {"range": server.config.ports.range, "bind": "127.0.0.1"}}
    async with running(tmp_path, **settings) as server:
        assert server.port("edge-1") == port
        assert server.services.authority.bundle.fingerprint == ca
        agent = Agent(server, identity)
        await agent.connect()
        assert (await call(server, "edge-1")).status == 200
        await agent.close()
