"""The face of a tunnel to a Go agent: what the server asks of native ones, it can ask here."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from protocol import defaults
from protocol.constants import Code
from protocol.errors import StreamRefused, TunnelLost
from tests.protocol.aio.sshpeers import Collect
from tests.tower_server.legacy.kit import CLUSTER, Host, host
from tests.waiting import until
from tower_server.legacy import tunnel as module
from tower_server.legacy.tunnel import LegacyTunnel

pytestmark = pytest.mark.asyncio
SERVER = Path(module.__file__).parents[1]


@pytest_asyncio.fixture
async def tower(tmp_path: Path) -> AsyncIterator[Host]:
    async with host(tmp_path) as found:
        yield found


async def tunnel_of(tower: Host, **changes: Any) -> LegacyTunnel:
    await tower.registered(**changes)
    found: LegacyTunnel = tower.member.tunnels[-1]
    return found


async def test_it_has_whatever_the_server_asks_of_a_tunnel(tower: Host) -> None:
    asked: set[str] = set()
    for file in [*SERVER.glob("*.py"), *(SERVER / "admin").glob("*.py"), *(SERVER / "controller").glob("*.py")]:
        asked |= set(re.findall(r"\b(?:tunnel|tunnels\[0\]|best|older)\.([a-z]\w*)", file.read_text()))
    found = await tunnel_of(tower)
    missing = sorted(name for name in asked if not hasattr(found, name))
    assert not missing, f"tower_server asks a tunnel for {missing}; LegacyTunnel must answer too"


async def test_figures_and_streams_are_listed(tower: Host) -> None:
    found = await tunnel_of(tower)
    await until(lambda: found.rtt is not None)
    assert found.bytes_in > 0
    assert found.bytes_out > 0
    assert [each.service for each in found.streams()].count("tower.control") == 1
    end = Collect()
    raw = await found.open("kubesphere", end, caller="192.0.2.1:5", connection_id="c-1")
    (seen,) = [each for each in found.streams() if each.service == "kubesphere"]
    assert (seen.caller, seen.connection_id) == ("192.0.2.1:5", "c-1")
    raw.write(b"abc")
    await until(lambda: bytes(end.data) == b"ABC")
    raw.close()
    await until(lambda: all(each.service != "kubesphere" for each in found.streams()))


async def test_only_announced_services_can_be_opened(tower: Host) -> None:
    found = await tunnel_of(tower, KubeSphereSvcHost="")
    for service in ("kubesphere", "127.0.0.1:22", ""):
        with pytest.raises(StreamRefused) as caught:
            found.start_open(service, Collect())
        assert caught.value.code == Code.UNKNOWN_SERVICE


async def test_without_memory_for_a_channel_the_caller_is_told(tower: Host) -> None:
    found = await tunnel_of(tower)
    budget = found.wire.limits.budget
    taken = budget.free
    budget.charge(taken)
    with pytest.raises(StreamRefused) as caught:
        found.start_open("kubesphere", Collect())
    assert caught.value.code == Code.BUDGET
    assert "`memory.process`" in caught.value.text
    budget.give(taken)


async def test_an_agent_that_answers_pings_and_no_opens_keeps_no_caller_and_no_memory(tower: Host) -> None:
    parts = tower.running.server._parts.legacy
    parts._limits = replace(parts._limits, open_deadline=0.2)
    agent = await tower.registered()
    await until(lambda: tower.member.verdict.state == "Connected")
    found = tower.member.tunnels[-1]
    found.gateway.upstreams.expire(float("inf"))
    agent.serve = False
    await until(lambda: len(tower.running.services.clusters.ports.of(CLUSTER)) == 2)
    reader, writer = await asyncio.open_connection("127.0.0.1", tower.running.port(CLUSTER, "kubesphere"))
    async with asyncio.timeout(30):
        assert await reader.read() == b""
    writer.close()
    await until(lambda: all(each.service != "kubesphere" for each in found.streams()))
    budget = found.wire.limits.budget
    await until(lambda: budget.used == 0)
    assert found.closed is None
    assert tower.backend.raw_address in agent.targets
    assert found.wire.channel_count >= 1, "the agent may still answer them, a probe's too"
    found.wire.limits = replace(found.wire.limits, most=1)
    with pytest.raises(StreamRefused, match="have not been answered"):
        found.start_open("kubesphere", Collect())


async def test_a_ping_measures_although_go_refuses_it(tower: Host) -> None:
    found = await tunnel_of(tower)
    assert 0 < await found.ping() < 5


@pytest.mark.slow
async def test_an_agent_that_fell_silent_is_noticed_and_dropped_when_the_configuration_says(tmp_path: Path) -> None:
    async with host(tmp_path, liveness={"ping": 0.2, "dead_after": 0.9}) as tower:
        agent = await tower.registered()
        found = tower.member.tunnels[-1]
        agent.link.link_received = lambda data: None  # type: ignore[attr-defined]
        agent.link._transport.pause_reading()  # type: ignore[union-attr]  # half-open: nothing is answered any more
        async with asyncio.timeout(defaults.DEAD_AFTER - 1):
            closed = await found.wait_closed()
        assert closed.code == Code.DEAD_PEER
        assert "nothing heard" in closed.text
        answer = await tower.ask("/")
        assert answer.status == 503
        assert answer.json()["kind"] == "Status"


@pytest.mark.slow
async def test_an_agent_that_owes_an_answer_stalls(tower: Host) -> None:
    agent = await tower.registered()
    found = tower.member.tunnels[-1]
    await until(lambda: found._asked_at is None)
    assert not found.stalled
    agent.link._transport.pause_reading()  # type: ignore[union-attr]
    found._ask()
    await until(lambda: found.stalled and found.silent)
    agent.link._transport.resume_reading()  # type: ignore[union-attr]
    await until(lambda: not found.stalled)
    assert not found.silent


async def test_its_end_ends_its_streams_with_a_reason_once(tower: Host) -> None:
    found = await tunnel_of(tower)
    ends = [Collect(), Collect()]
    for end in ends:
        await found.open("kubesphere", end)
    found.close(Code.DELETED, "the cluster was deleted")
    found.close(Code.SHUTDOWN, "twice")
    async with asyncio.timeout(30):
        for end in ends:
            assert isinstance(await end.lost, TunnelLost)
    assert found.closed is not None
    assert (found.closed.code, found.closed.by_peer) == (Code.DELETED, False)
    assert await found.wait_closed() is found.closed
    with pytest.raises(StreamRefused):
        found.start_open("kubernetes", Collect())
    with pytest.raises(ConnectionError):
        await found.connect(Collect)
    with pytest.raises(TunnelLost):
        await found.ping()
    await until(lambda: found.stream_count == 0 and found.wire.limits.budget.used == 0)


async def test_a_draining_tunnel_takes_nothing_new(tower: Host) -> None:
    found = await tunnel_of(tower)
    found.drain(Code.SHUTDOWN, "the server stops", deadline=1.0, retry_after=1.0)
    with pytest.raises(StreamRefused) as caught:
        found.start_open("kubernetes", Collect())
    assert caught.value.code == Code.DRAINING
    assert tower.member.pick() is None


async def test_a_deleted_clusters_agents_are_closed_and_cannot_come_back(tower: Host) -> None:
    agent = await tower.registered()
    await tower.running.services.clusters.delete(tower.running.services.clusters.get(CLUSTER)[0])
    async with asyncio.timeout(30):
        await agent.lost.wait()
    again = await tower.dialled()
    assert "TWR240" in await again.register(tower.config())
