"""Two servers in one process on one real apiserver: they find each other, and an agent that moves between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import structlog

from protocol import defaults
from protocol.aio.hops import DialError
from protocol.constants import Code
from tests.lab.controlplane import ControlPlane
from tests.lab.hostplane import crds
from tests.tower_server.kit import Agent, Running, call, enrol, running
from tests.tower_server.test_ports import free_range

pytestmark = [pytest.mark.asyncio, pytest.mark.cluster, pytest.mark.timeout(120)]
NAMESPACE = "tower-pair"
PATIENCE = 30.0


async def until(condition) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


@dataclass
class Pair:
    one: Running
    two: Running
    plane: ControlPlane

    def leases(self) -> str:
        return self.plane.kubectl("get", "leases", "-n", NAMESPACE, "-o", "name").text


@pytest_asyncio.fixture
async def pair(host_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Pair]:
    await asyncio.to_thread(crds, host_plane)
    host_plane.kubectl("create", "namespace", NAMESPACE, check=False)
    store = {"kind": "kubernetes", "namespace": NAMESPACE, "kubeconfig": str(host_plane.admin_kubeconfig)}
    ports = free_range(8)
    async with AsyncExitStack() as stack:
        servers = []
        for number, bind in ((1, "127.0.0.1"), (2, "127.0.0.2")):
            folder = tmp_path / str(number)
            folder.mkdir()
            servers.append(
                await stack.enter_async_context(
                    running(
                        folder,
                        store=store,
                        ports={"range": (ports.first, ports.last), "bind": bind},
                        replica={"name": f"tower-{number}", "listen": f"{bind}:0", "address": bind},
                    )
                )
            )
        yield Pair(*servers, host_plane)
    host_plane.kubectl("delete", "members", "--all")


async def test_a_server_shows_and_serves_what_the_other_holds_and_says_why_when_nobody_does(pair: Pair):
    token = await pair.one.add("edge")
    agent = Agent(pair.two, await enrol(pair.one, token))
    await until(lambda: "edge" in pair.two.services.registry.members)
    await agent.connect()
    await agent.report(services={"kubernetes": {"mode": "gateway"}}, version="v1.30.0", uid="u-1", requests={"n": 1})
    far = pair.one.member("edge")
    await until(lambda: far.verdict.ready == "True" and far.known_report.get("uid") == "u-1")
    assert (far.serving, far.tunnels_of_host) == ([], 1)
    assert "requests" not in far.known_report
    answer = await call(pair.one, "edge")
    assert (answer.status, answer.body) == (200, b"ok")
    await agent.close()
    await until(lambda: far.verdict.state == "TunnelDown")
    assert "server tower-2" in far.verdict.cause
    assert (await call(pair.one, "edge")).status == 503
    leases = await asyncio.to_thread(pair.leases)
    assert "tower-replica-tower-1" in leases
    assert "tower-replica-tower-2" in leases


async def test_a_server_that_stops_says_goodbye_and_ends_what_it_followed(pair: Pair):
    token = await pair.one.add("stays")
    agent = Agent(pair.one, await enrol(pair.one, token))
    await agent.connect()
    await agent.report(services={"kubernetes": {"mode": "gateway"}})
    await until(lambda: "stays" in pair.two.services.registry.members)
    far = pair.two.member("stays")
    await until(lambda: far.known_report.get("services"))
    assert far.verdict.ready == "True"
    with structlog.testing.capture_logs() as lines:
        await pair.two.server.stop()
    assert [each for each in lines if each.get("log_level") in ("error", "critical")] == []
    assert "tower-replica-tower-2" not in await asyncio.to_thread(pair.leases)
    assert "tower-replica-tower-1" in await asyncio.to_thread(pair.leases)
    assert (await call(pair.one, "stays")).body == b"ok"
    await agent.close()


async def test_a_tunnel_whose_agent_has_moved_ends_at_once_and_its_callers_are_served_by_the_other(pair: Pair):
    token = await pair.one.add("mover")
    agent = Agent(pair.one, await enrol(pair.one, token), features=("ack", "resume"))
    await until(lambda: "mover" in pair.two.services.registry.members)
    first = await agent.connect()
    member = pair.one.member("mover")
    await until(lambda: member.verdict.ready == "True")
    held = member.tunnels[0]
    agent.server = pair.two
    with pytest.raises(DialError):
        await agent.connect(resume=first)
    await until(lambda: first.closed is not None)
    assert first.closed.code is Code.UNKNOWN_TUNNEL, "the other server has no such tunnel"
    await agent.connect()
    began = asyncio.get_running_loop().time()
    await until(lambda: held.closed is not None)
    assert asyncio.get_running_loop().time() - began < defaults.RESUME_WINDOW / 2
    await until(lambda: member.elsewhere is not None and member.verdict.ready == "True")
    assert (await call(pair.one, "mover")).body == b"ok"
    await agent.close()
