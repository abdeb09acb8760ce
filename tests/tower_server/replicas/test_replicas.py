"""Two servers in one process on one real apiserver: they find each other, and an agent that moves between them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import structlog
from websockets.asyncio.client import unix_connect
from websockets.exceptions import InvalidStatus

from daemon.faults import TowerError
from protocol import defaults
from protocol.aio.hops import DialError
from protocol.constants import Code
from tests.lab.controlplane import ControlPlane
from tests.lab.hostplane import crds
from tests.tower_server.kit import Agent, Echo, Running, admin, call, enrol, running
from tests.tower_server.test_ports import free_range
from tests.waiting import PATIENCE, until
from tower_server.member import Member
from tower_server.replicas import directory, port

pytestmark = [pytest.mark.asyncio, pytest.mark.cluster, pytest.mark.timeout(120)]
NAMESPACE = "tower-pair"


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


async def held_by_two(pair: Pair) -> tuple[Agent, Member]:
    """The agent of a cluster whose tunnel the second server holds, and the cluster as the first one sees it."""
    agent = Agent(pair.two, await enrol(pair.one, await pair.one.add("edge")))
    await until(lambda: "edge" in pair.two.services.registry.members)
    await agent.connect()
    await agent.report(services={"kubernetes": {"mode": "gateway"}})
    far = pair.one.member("edge")
    await until(lambda: far.verdict.ready == "True")
    return agent, far


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


async def test_a_server_that_cannot_write_its_lease_goes_on_with_the_others_for_as_long_as_it_is_heard_of(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
):
    """As one that is cut off from the apiserver and from nobody else, or whose Lease somebody has deleted."""
    agent, far = await held_by_two(pair)
    replicas = pair.one.services.replicas
    assert replicas is not None
    assert replicas._directory is not None
    changed = replicas._directory.changed
    monkeypatch.setattr(directory, "STALE_AFTER", 0.0)
    assert replicas._directory.peers() == []
    for _ in range(2):  # the second look begins when the first is over
        changed.set()
        await until(lambda: not changed.is_set())
    assert far.verdict.ready == "True"
    assert (await call(pair.one, "edge")).body == b"ok"
    await agent.close()
    await pair.two.server.stop()
    await until(lambda: replicas.links == {})


async def test_a_server_that_falls_silent_with_a_stale_lease_is_named_and_served_again_when_it_is_back(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
):
    """As one that is cut off from all, and goes on with its tunnels and with what it was told last."""
    agent, far = await held_by_two(pair)
    replicas, cut = pair.one.services.replicas, pair.two.services.replicas
    assert replicas is not None
    assert replicas._directory is not None
    assert cut is not None
    changed = replicas._directory.changed
    monkeypatch.setattr(directory, "STALE_AFTER", 0.0)
    tell = cut.port.tell
    monkeypatch.setattr(cut.port, "tell", lambda: None)
    monkeypatch.setattr(defaults, "REPLICA_DEAD_AFTER", 0.2)
    await until(lambda: far.verdict.code == "TWR118")
    for _ in range(2):  # the second look begins when the first is over
        changed.set()
        await until(lambda: not changed.is_set())
    assert list(replicas.links) == ["tower-2"], "who asks all servers is told of one that did not answer"
    monkeypatch.undo()
    monkeypatch.setattr(directory, "STALE_AFTER", 0.0)
    assert cut.port.tell == tell
    await until(lambda: far.verdict.ready == "True")
    assert (await call(pair.one, "edge")).body == b"ok"
    await agent.close()
    await pair.two.server.stop()
    await until(lambda: replicas.links == {})


async def test_a_server_that_stops_says_goodbye_and_ends_what_it_followed(pair: Pair):
    token = await pair.one.add("stays")
    agent = Agent(pair.one, await enrol(pair.one, token))
    await agent.connect()
    await agent.report(services={"kubernetes": {"mode": "gateway"}})
    await until(lambda: "stays" in pair.two.services.registry.members)
    far = pair.two.member("stays")
    await until(lambda: far.known_report.get("services"))
    await until(lambda: far.verdict.ready == "True")
    with structlog.testing.capture_logs() as lines:
        await pair.two.server.stop()
    assert [each for each in lines if each.get("log_level") in ("error", "critical")] == []
    assert "tower-replica-tower-2" not in await asyncio.to_thread(pair.leases)
    assert "tower-replica-tower-1" in await asyncio.to_thread(pair.leases)
    assert (await call(pair.one, "stays")).body == b"ok"
    await agent.close()


class Collected(asyncio.Protocol):
    """A caller's end of a stream."""

    def __init__(self) -> None:
        self.data, self.lost = bytearray(), asyncio.Event()

    def data_received(self, data) -> None:
        self.data += data

    def connection_lost(self, _exc: Exception | None) -> None:
        self.lost.set()


async def test_an_agent_that_comes_back_by_another_server_goes_on_where_its_tunnel_is_and_no_stream_notices(pair: Pair):
    token = await pair.one.add("carried")
    agent = Agent(pair.one, await enrol(pair.one, token), features=("ack", "resume"))
    agent.raw = lambda stream: stream.accept(Echo())
    await until(lambda: "carried" in pair.two.services.registry.members)
    tunnel = await agent.connect()
    (held,) = pair.one.member("carried").tunnels
    caller, sent = Collected(), random.Random(1).randbytes(600_000)
    stream = await held.open("echo", caller)
    stream.write(sent[:200_000])
    await until(lambda: len(caller.data) > 50_000)
    agent.server = pair.two
    assert await agent.connect(resume=tunnel) is tunnel
    stream.write(sent[200_000:])
    await until(lambda: len(caller.data) == len(sent))
    assert bytes(caller.data) == sent
    assert held.resumes == 1
    assert not caller.lost.is_set()
    assert pair.two.member("carried").tunnels == []
    near, far = pair.two.server._parts.replicas, pair.one.server._parts.replicas
    assert (len(near.carrying), len(far.port.carried)) == (1, 1)
    agent.server = pair.one
    assert await agent.connect(resume=tunnel) is tunnel
    await until(lambda: not near.carrying and not far.port.carried)
    stream.write(b"more")
    await until(lambda: len(caller.data) == len(sent) + 4)
    await agent.close()


async def test_a_tunnel_whose_agent_has_moved_ends_at_once_and_its_callers_are_served_by_the_other(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(port, "MAX_CARRIED", 0)
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


async def test_whoever_is_asked_knows_the_tunnels_of_all_and_names_a_server_that_does_not_answer(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await pair.one.add("shown")
    agent = Agent(pair.two, await enrol(pair.one, token))
    await until(lambda: "shown" in pair.two.services.registry.members)
    tunnel = await agent.connect()
    await agent.report(services={"kubernetes": {"mode": "gateway"}})
    await until(lambda: pair.one.member("shown").verdict.ready == "True")

    async def listed(server: Running, kind: str) -> dict:
        return (await admin(server, "GET", f"/v1/{kind}?cluster=shown")).json()

    for server in (pair.one, pair.two):
        found = await listed(server, "tunnels")
        assert [(item["id"], item["server"]) for item in found["items"]] == [(tunnel.id, "tower-2")]
        assert found["unanswered"] == []
        (view,) = (await listed(server, "agents"))["items"]
        assert view["tunnels"] == 1
    pinged = await admin(pair.one, "POST", "/v1/clusters/shown/ping")
    assert pinged.status == 200, pinged.body
    assert (pinged.json()["tunnel"], pinged.json()["server"]) == (tunnel.id, "tower-2")

    async def refuse(_asking: object) -> dict:
        raise TowerError("TWR118", "out of order")

    monkeypatch.setattr(pair.two.server._parts.replicas, "answer", refuse)
    found = await listed(pair.one, "tunnels")
    assert found["items"] == []
    assert found["unanswered"] == [{"server": "tower-2", "reason": "out of order"}]
    assert (await admin(pair.one, "POST", "/v1/clusters/shown/ping")).json()["code"] == "TWR118"
    await agent.close()


async def test_a_check_finds_well_what_another_server_holds_and_that_server_where_nothing_is_heard_of_it(
    pair: Pair,
) -> None:
    token = await pair.one.add("checked")
    agent = Agent(pair.two, await enrol(pair.one, token))
    await until(lambda: "checked" in pair.two.services.registry.members)
    await agent.connect()
    await agent.report(services={"kubernetes": {"mode": "gateway"}})
    await until(lambda: pair.one.member("checked").verdict.ready == "True")

    async def checked() -> dict[str, dict]:
        report = (await admin(pair.one, "GET", "/v1/check?cluster=checked")).json()
        return {each["name"]: each for each in report["items"]}

    found = await checked()
    names = ("clock", "servers", "tunnel/checked", "readyz/checked", "redundancy/checked")
    assert {name: found[name]["status"] for name in names} == dict.fromkeys(names, "ok"), found
    shown = (await admin(pair.one, "GET", "/v1/clusters/checked")).json()
    assert {each["status"] for each in shown["conditions"]} == {"True"}, shown["conditions"]

    replicas = pair.one.services.replicas
    assert replicas is not None
    pair.two.server._parts.replicas.close()  # its replica port is out of reach; its tunnels are not
    await until(lambda: pair.one.member("checked").verdict.ready == "False")
    await until(lambda: replicas.links["tower-2"].refused)  # what is said of it stays the same from here on
    found = await checked()
    for name, status in (("servers", "warning"), ("tunnel/checked", "failed")):
        assert (found[name]["status"], found[name]["code"]) == (status, "TWR118"), found[name]
        assert "tower-2" in found[name]["message"]
        assert name != "servers" or found[name]["message"].endswith(replicas.links["tower-2"].why)
        assert "`replica.address`" in found[name]["next"]
    refused = (await call(pair.one, "checked")).json()
    assert refused["details"]["causes"][0]["reason"] == "TWR118", refused
    await agent.close()


async def test_a_caller_is_told_by_any_server_why_its_stream_was_not_opened(pair: Pair) -> None:
    token = await pair.one.add("refusing")
    agent = Agent(pair.two, await enrol(pair.one, token))
    await until(lambda: "refusing" in pair.two.services.registry.members)
    await agent.connect()
    await agent.report(services={"kubernetes": {"mode": "gateway"}})
    await until(lambda: pair.one.member("refusing").verdict.ready == "True")
    agent.refusal = (Code.DIAL_FAILED, "the apiserver is not there")
    for server in (pair.one, pair.two):
        answer = await call(server, "refusing")
        assert (answer.status, answer.json()["details"]["causes"][0]["reason"]) == (502, "TWR301")
        assert "the apiserver is not there" in answer.json()["message"]
    await agent.close()


async def test_a_forward_is_passed_on_to_the_server_that_holds_the_tunnel(pair: Pair) -> None:
    token = await pair.one.add("passed")
    agent = Agent(pair.two, await enrol(pair.one, token))
    refusal = (Code.UNKNOWN_SERVICE, "no such service here")
    agent.raw = lambda stream: stream.accept(Echo()) if stream.service == "echo" else stream.refuse(*refusal)
    await until(lambda: "passed" in pair.two.services.registry.members)
    await agent.connect()
    await agent.report(services={"kubernetes": {"mode": "gateway"}})
    await until(lambda: pair.one.member("passed").verdict.ready == "True")
    path = str(pair.one.config.admin_socket)
    url = "ws://localhost/v1/clusters/passed/forward/"
    async with unix_connect(path, url + "echo", compression=None) as socket:
        for size in (5, 300_000):
            await socket.send(b"x" * size)
            back = b""
            while len(back) < size:
                back += await asyncio.wait_for(socket.recv(), PATIENCE)
            assert back == b"x" * size
        await socket.send("")
        assert await asyncio.wait_for(socket.recv(), PATIENCE) == ""
    with pytest.raises(InvalidStatus) as caught:
        async with unix_connect(path, url + "nothing", compression=None):
            pass
    assert b"TWR226" in caught.value.response.body
    await agent.close()


async def test_what_is_revoked_at_one_server_counts_at_the_other_before_the_command_returns(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await pair.one.add("barred")
    identity = await enrol(pair.one, token)
    agent = Agent(pair.two, identity)
    await until(lambda: "barred" in pair.two.services.registry.members)
    await agent.connect()
    name = pair.two.member("barred").tunnels[0].peer.agent
    answer = await admin(pair.one, "POST", f"/v1/agents/barred/{name}/revoke")
    assert (answer.status, answer.json()["unanswered"]) == (200, []), answer.body
    assert pair.two.member("barred").tunnels == []
    assert pair.two.services.revocations.current == pair.one.services.revocations.current
    with pytest.raises(DialError):
        await agent.connect()

    async def refuse(_asking: object) -> dict:
        raise TowerError("TWR118", "out of order")

    monkeypatch.setattr(pair.two.server._parts.replicas, "answer", refuse)
    answer = await admin(pair.one, "POST", "/v1/callers/alice/revoke")
    assert [each["server"] for each in answer.json()["unanswered"]] == ["tower-2"]
    await until(lambda: "alice" in pair.two.services.revocations.current.users)  # it looks by itself
    answer = await admin(pair.one, "DELETE", "/v1/clusters/barred")
    assert [each["server"] for each in answer.json()["unanswered"]] == ["tower-2"], "it may serve that cluster still"
    await agent.close()
