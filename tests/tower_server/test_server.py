"""The thin path through everything: a cluster is added, its agent joins, a caller gets through, the state is true."""

import asyncio
import subprocess
import sys

import pytest
import structlog.testing

from protocol.aio.hops import DialError
from protocol.constants import Code
from tests.tower_server.kit import Agent, Echo, admin, call, enrol, joined, raw, raw_kubernetes, running
from tests.waiting import until

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


async def test_a_server_that_stops_serves_what_runs_and_tells_who_comes_that_it_goes(tmp_path):
    async with running(tmp_path, drain="60s") as server:
        agent = Agent(server, await enrol(server, await server.add("edge-1")))
        await agent.connect()
        raw_kubernetes(agent, Echo)
        async with raw(server, "edge-1") as (reader, writer):
            writer.write(b"before")
            assert await reader.readexactly(6) == b"before"
            stopping = asyncio.create_task(server.server.stop())
            await until(lambda: agent.tunnel.draining)
            answer = await call(server, "edge-1")
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert "TWR113" in answer.json()["message"]
            assert "this tower server is stopping" in answer.json()["message"]
            with pytest.raises(DialError, match="this server is stopping") as refused:
                await Agent(server, agent.identity).connect()
            assert 0 < refused.value.retry_after <= 60
            writer.write(b"during")
            assert await reader.readexactly(6) == b"during"
            assert not stopping.done()
        await asyncio.wait_for(stopping, 30)  # the last stream has ended: nothing is waited for any more
        await until(lambda: agent.closed)
        assert (agent.closed[0].code, agent.closed[0].text) == (Code.SHUTDOWN, "the server stops")


async def test_a_server_that_stops_lets_its_own_tunnels_come_back_until_the_deadline(tmp_path):
    async with running(tmp_path, drain="60s") as server:
        agent = Agent(server, await enrol(server, await server.add("edge-1")), features=("ack", "resume"))
        tunnel = await agent.connect()
        raw_kubernetes(agent, Echo)
        async with raw(server, "edge-1") as (reader, writer):
            writer.write(b"before")
            assert await reader.readexactly(6) == b"before"
            stopping = asyncio.create_task(server.server.stop())
            await until(lambda: tunnel.draining)
            tunnel._link.abort("cut by the test")
            writer.write(b"during")
            assert await agent.connect(resume=tunnel) is tunnel
            async with asyncio.timeout(30):
                assert await reader.readexactly(6) == b"during"
            assert tunnel.resumes == 1
            assert not stopping.done()
        await asyncio.wait_for(stopping, 30)
        await until(lambda: agent.closed)
        assert (agent.closed[0].code, agent.closed[0].text) == (Code.SHUTDOWN, "the server stops")


async def test_what_outlasts_the_drain_is_cut_with_a_reason(tmp_path):
    async with running(tmp_path, drain="100ms") as server:
        agent = Agent(server, await enrol(server, await server.add("edge-1")))
        await agent.connect()
        protocol = Echo()
        raw_kubernetes(agent, lambda: protocol)
        async with raw(server, "edge-1") as (reader, writer):
            writer.write(b"before")
            assert await reader.readexactly(6) == b"before"
            await server.server.stop()
            with pytest.raises(ConnectionResetError):
                await reader.read()
            assert "the server stops" in str(await asyncio.wait_for(protocol.lost, 30))


async def test_a_store_that_is_slow_keeps_no_server_from_giving_back_what_others_wait_for(tmp_path, monkeypatch):
    monkeypatch.setattr("tower_server.server.SAVED_WITHIN", 0.1)
    async with running(tmp_path) as server, joined(server, "edge-1"):

        async def slow(*_args, **_more):
            await asyncio.sleep(3600)

        monkeypatch.setattr(server.services.store, "update", slow)
        with structlog.testing.capture_logs() as said:
            await asyncio.wait_for(server.server.stop(), 30)
    (line,) = [line for line in said if line["event"] == "not-saved"]
    assert line["text"] == "the store took more than 0.1 s to note when tunnels were there last"


async def test_a_handshake_under_way_does_not_disturb_the_stop(tmp_path):
    async with running(tmp_path, drain="100ms") as server:
        agent = Agent(server, await enrol(server, await server.add("edge-1")))
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def slow(*_arguments):
            reached.set()
            await go_on.wait()

        server.server._parts.listener.authenticate = slow
        connecting = asyncio.create_task(agent.connect())
        await asyncio.wait_for(reached.wait(), 30)
        await server.server.stop()
        with pytest.raises(DialError):
            await connecting


@pytest.mark.slow  # a process that imports the whole server
async def test_where_no_dialect_is_served_ssh_is_not_even_loaded():
    code = "import sys, tower_server.server; print('asyncssh' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout == "False\n"
