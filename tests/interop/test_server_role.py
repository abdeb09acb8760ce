"""Go agents of both vintages at our server: they connect unchanged, and callers get through."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.interop.peers import GoAgent, Vintage, make_account
from tests.lab.loops import pytest_asyncio_loop_factories as pytest_asyncio_loop_factories
from tests.lab.pki import ClusterCA, write_kubeconfig
from tests.loopback.backend import TOKEN as MEMBER_TOKEN
from tests.loopback.member import BackendMember
from tests.tower_server.kit import caller_context
from tests.tower_server.kit import running as server_running
from tests.tower_server.legacy.kit import CLUSTER, TOKEN, Host, host
from tests.waiting import until

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]  # many processes


def by_certificate(tower: Host, folder: Path) -> Path:
    ca = tower.backend.ca
    return write_kubeconfig(
        folder / "agent.kubeconfig",
        name="member",
        server=f"https://{tower.backend.address}",
        ca=ca.pem,
        client=ca.client("go", "agent-of-the-member", ["system:masters"]),
    )


@asynccontextmanager
async def running(tower: Host, folder: Path, vintage: Vintage, **more: Any) -> AsyncIterator[GoAgent]:
    folder.mkdir(exist_ok=True)
    credential = more.pop("credential", None) or by_certificate(tower, folder)
    kubesphere = more.pop("kubesphere", tower.backend.raw_address)
    connected = more.pop("connected", more.get("token", TOKEN) == TOKEN)
    agent = GoAgent(
        folder / "go",
        vintage,
        f"http://127.0.0.1:{tower.port}",
        credential=credential,
        kubesphere=kubesphere,
        **{"name": CLUSTER, "token": TOKEN, **more},
    )
    try:
        await asyncio.to_thread(agent.start, connected=connected)
        if connected:
            await until(lambda: tower.member.verdict.state == "Connected")
        yield agent
    finally:
        await asyncio.to_thread(agent.stop)


async def test_a_go_agent_serves_callers_of_both_services(tmp_path: Path, vintage: Vintage) -> None:
    async with host(tmp_path) as tower, running(tower, tmp_path, vintage):
        assert (await tower.ask("/go")).status == 200
        (seen,) = tower.backend.to("/go")
        assert (seen.certificate, seen.headers["impersonate-user"]) == ("agent-of-the-member", "tower:hq:admin")
        plain = caller_context(tower.running)
        assert (await tower.ask("/bearer", "Authorization: Bearer x", context=plain)).status == 200
        assert tower.backend.to("/bearer")[0].certificate is None
        assert (await tower.ask("/nobody", context=plain)).status == 401
        tower.backend.answer = bytes(range(256)) * 40_000  # 10 MB through 1 KiB fragments
        assert (await tower.ask("/bulk", timeout=60)).body == tower.backend.answer
        await until(lambda: len(tower.running.services.clusters.ports.of(CLUSTER)) == 2)
        reader, writer = await asyncio.open_connection("127.0.0.1", tower.running.port(CLUSTER, "kubesphere"))
        writer.write(b"through the other port")
        async with asyncio.timeout(30):
            assert await reader.readexactly(22) == b"THROUGH THE OTHER PORT"
        writer.close()
        view = await tower.view()
        assert view["dialect"] == "kubesphere-v1"
        assert (await tower.condition("LegacyBinding"))["status"] == "True"
        assert await tower.member.tunnels[0].ping() < 5


async def test_many_callers_at_once(tmp_path: Path, vintage: Vintage) -> None:
    async with host(tmp_path) as tower, running(tower, tmp_path, vintage):
        tower.backend.answer = b"a" * 50_000
        answers = await asyncio.gather(*(tower.ask(f"/many/{number}", timeout=60) for number in range(60)))
        assert {(each.status, len(each.body)) for each in answers} == {(200, 50_000)}


async def test_a_pods_agent_ships_its_token(tmp_path: Path, vintage: Vintage) -> None:
    async with host(tmp_path) as tower:
        port = int(tower.backend.address.rpartition(":")[2])
        account = make_account(
            tmp_path / "account", host="127.0.0.1", port=port, ca=tower.backend.ca.pem, token="pods-token"
        )
        async with running(tower, tmp_path, vintage, credential=account):
            assert (await tower.ask("/pod")).status == 200
            assert tower.backend.to("/pod")[0].headers["authorization"] == "Bearer pods-token"


async def test_a_bundle_of_many_authorities_is_taken(tmp_path: Path, vintage: Vintage) -> None:
    """As companies hand them out, with a text at each; 200 KiB and more as Go sends it."""
    async with host(tmp_path) as tower:
        port = int(tower.backend.address.rpartition(":")[2])
        others = [ClusterCA(tmp_path, f"authority-{number}").pem for number in range(9)]
        bundle = b"".join(b"# %s\n%s" % (b"x" * 800, each) for each in [*others * 13, tower.backend.ca.pem])
        account = make_account(tmp_path / "account", host="127.0.0.1", port=port, ca=bundle, token="pods-token")
        async with running(tower, tmp_path, vintage, credential=account):
            assert (await tower.ask("/many")).status == 200


async def test_a_token_that_has_expired_since_the_go_agent_read_it_is_named_with_its_mend(
    tmp_path: Path, vintage: Vintage, member: BackendMember
) -> None:
    account = make_account(
        tmp_path / "account", host="127.0.0.1", port=member.port, ca=member.ca.pem, token="expired-since"
    )
    async with host(tmp_path) as tower:
        agent = GoAgent(
            tmp_path / "go", vintage, f"http://127.0.0.1:{tower.port}", credential=account, name=CLUSTER, token=TOKEN
        )
        try:
            await asyncio.to_thread(agent.start)
            account.use(MEMBER_TOKEN)
            await until(lambda: tower.member.verdict.state == "AuthFailed")
            answer = await tower.ask("/version")
            assert answer.status == 502
            assert "TWR305" in answer.json()["message"]
            assert "restart a Go agent" in answer.json()["message"]
            await asyncio.to_thread(agent.stop)
            await asyncio.to_thread(agent.start)
            await until(lambda: tower.member.verdict.state == "Connected")
            assert (await tower.ask("/version")).status == 200
        finally:
            await asyncio.to_thread(agent.stop)


async def test_a_go_agent_with_a_wrong_token_reads_why(tmp_path: Path, vintage: Vintage) -> None:
    async with host(tmp_path) as tower, running(tower, tmp_path, vintage, token="cd" * 32) as agent:
        await until(lambda: re.search(r"Unauthorized agent.*TWR240", agent.said))
        assert not tower.member.tunnels


async def test_an_apiserver_that_is_down_is_named(tmp_path: Path, vintage: Vintage) -> None:
    async with host(tmp_path) as tower, running(tower, tmp_path, vintage):
        tower.backend.server.close()
        tower.member.tunnels[0].gateway.upstreams.expire(float("inf"))
        answer = await tower.ask("/down", timeout=30)
        assert answer.status == 502
        assert "TWR301" in answer.body.decode()


async def test_an_agent_that_is_killed_and_started_again_is_back_on_the_same_port(
    tmp_path: Path, vintage: Vintage
) -> None:
    async with host(tmp_path) as tower:
        port = tower.running.port(CLUSTER)
        async with running(tower, tmp_path, vintage):
            assert (await tower.ask("/first")).status == 200
        await until(lambda: not tower.member.tunnels)
        async with running(tower, tmp_path / "again", vintage):
            assert (await tower.ask("/second")).status == 200
        assert tower.running.port(CLUSTER) == port


async def test_rekeying_by_the_server_leaves_a_go_agents_streams_whole(tmp_path: Path, vintage: Vintage) -> None:
    async with host(tmp_path) as tower:
        tower.running.server._parts.legacy._port.options.rekey_bytes = 50_000
        async with running(tower, tmp_path, vintage):
            assert tower.member.tunnels[0].wire._rekey_bytes == 50_000
            tower.backend.answer = bytes(range(256)) * 20_000
            answers = await asyncio.gather(*(tower.ask(f"/{number}", timeout=60) for number in range(4)))
            assert {each.body == tower.backend.answer for each in answers} == {True}


async def test_rekeying_by_a_go_agent_in_the_midst_of_ours_leaves_its_streams_whole(
    tmp_path: Path, vintage: Vintage
) -> None:
    async with host(tmp_path) as tower:
        tower.running.server._parts.legacy._port.options.rekey_bytes = 50_000
        async with running(tower, tmp_path, vintage, rekey_bytes=60_000):
            (tunnel,) = tower.member.tunnels
            tower.backend.answer = bytes(range(256)) * 20_000
            answers = await asyncio.gather(*(tower.ask(f"/{number}", timeout=60) for number in range(8)))
            assert {each.body == tower.backend.answer for each in answers} == {True}
            assert tower.member.tunnels == [tunnel]


async def test_a_slow_caller_that_still_speaks_gets_all_that_was_said_and_the_tunnel_lives(
    tmp_path: Path, vintage: Vintage
) -> None:
    """A packet for a channel that both ends have closed costs a Go agent its whole connection."""
    said = bytes(range(256)) * 48_000  # more than the kernel takes of it

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.write_eof()
        with contextlib.suppress(OSError):
            while await reader.read(65536):
                pass
        writer.transport.abort()

    speaker = await asyncio.start_server(speak, "127.0.0.1", 0)
    address = f"127.0.0.1:{speaker.sockets[0].getsockname()[1]}"
    async with host(tmp_path) as tower, running(tower, tmp_path, vintage, kubesphere=address):
        await until(lambda: len(tower.running.services.clusters.ports.of(CLUSTER)) == 2)
        (tunnel,) = tower.member.tunnels
        loop = asyncio.get_running_loop()
        for _ in range(2):
            with socket.socket() as caller:
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
                caller.setblocking(False)
                await loop.sock_connect(caller, ("127.0.0.1", tower.running.port(CLUSTER, "kubesphere")))
                received = bytearray()
                async with asyncio.timeout(60):
                    while len(received) < len(said):
                        await loop.sock_sendall(caller, b"still here")
                        await asyncio.sleep(0.001)  # the agent is done long before
                        data = await loop.sock_recv(caller, 32768)
                        assert data, f"an end after {len(received)} bytes"
                        received += data
                assert received == said
        assert tower.member.tunnels == [tunnel]
        assert (await tower.ask("/after")).status == 200
    speaker.close()
    await speaker.wait_closed()


@pytest.mark.parametrize("ends", ["deadline", "stop"])
async def test_a_go_agent_that_waits_for_a_decision_outlives_it(tmp_path: Path, vintage: Vintage, ends: str) -> None:
    """As with a store that does not answer: its process ends where its `config` gets no answer."""
    asked = asyncio.Event()

    async def undecided(_payload: bytes, _remote: str) -> Any:
        asked.set()
        await asyncio.get_running_loop().create_future()

    async with host(tmp_path) as tower:
        port = tower.running.server._parts.legacy._port
        decide, port.register = port.register, undecided
        if ends == "deadline":
            port.deadline = 5.0
        async with running(tower, tmp_path, vintage, connected=False) as agent:
            async with asyncio.timeout(60):
                await asked.wait()
            if ends == "stop":
                await port.stop()
            told = "the server stops" if ends == "stop" else "no decision on the config within 5 s"
            await until(lambda: f"refused: {told}" in agent.said)
            if ends == "deadline":
                port.register = decide
                await until(lambda: tower.member.verdict.state == "Connected")
            assert agent.child.returncode is None


async def test_a_go_agent_outlives_a_restart_of_its_server(tmp_path: Path, vintage: Vintage) -> None:
    """It ends itself when a handshake breaks, or its `config`; a tunnel that ends it comes back from, by itself."""
    async with host(tmp_path) as tower:
        agent = GoAgent(
            tmp_path / "go",
            vintage,
            f"http://127.0.0.1:{tower.port}",
            credential=by_certificate(tower, tmp_path),
            name=CLUSTER,
            token=TOKEN,
        )
        dialect = {"enabled": True, "listen": f"127.0.0.1:{tower.port}"}
        try:
            await asyncio.to_thread(agent.start)
            assert (await tower.ask("/before")).status == 200
            ports = tower.running.config.ports.range
            await tower.running.server.stop()
            async with server_running(tmp_path, kubesphere_v1=dialect, ports={"range": ports}) as again:
                tower.running = again
                await until(lambda: CLUSTER in again.services.registry.members and tower.member.tunnels)
                assert (await tower.ask("/after")).status == 200
            assert agent.child.returncode is None, "it has seen two tunnels end"
            await until(lambda: agent.said.count(" connected") == 2)
        finally:
            await asyncio.to_thread(agent.stop)
