"""What a host may reach in the member: what was declared, and nothing else."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from certs.tls import ClientTrust, client_context
from protocol import defaults
from protocol.aio.dial import dial
from protocol.aio.stream import StreamTransport
from protocol.aio.tunnel import Tunnel
from protocol.constants import Code
from protocol.errors import StreamRefused
from tests.tower_agent.backend import Pki
from tests.tower_agent.caller import Caller, _Bytes
from tests.tower_agent.conftest import MakeMember
from tests.tower_agent.tower import new_tower, serving_tower
from tower_agent import supervisor


@asynccontextmanager
async def shouter() -> AsyncIterator[int]:
    """Answers with what it was sent in capitals, once the other side has finished."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write((await reader.read()).upper())
            await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def refused(tunnel: Tunnel, service: str) -> StreamRefused:
    with pytest.raises(StreamRefused) as caught:
        await tunnel.open(service, _Bytes())
    return caught.value


@pytest.mark.asyncio
async def test_a_declared_service_is_relayed_with_half_close(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower, shouter() as port:
        await member.agent(tower, services={"shout": f"127.0.0.1:{port}"})
        tunnel = await tower.tunnel()
        stream = _Bytes()
        transport = await tunnel.open("shout", stream, caller="203.0.113.9:5", connection_id="c7")
        transport.write(b"hello " * 50_000)
        transport.write_eof()
        answer = await asyncio.wait_for(stream.reader.read(), 30)
        while len(answer) < 300_000 and (more := await asyncio.wait_for(stream.reader.read(65536), 30)):
            answer += more
        assert answer == b"HELLO " * 50_000
        assert await asyncio.wait_for(stream.lost, 30) is None
        carried = member.metrics.render().decode()
        assert 'tower_agent_stream_bytes_total{direction="to_member"} 300000.0' in carried


@pytest.mark.asyncio
async def test_a_service_that_is_asked_for_right_behind_welcome_is_relayed(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: asyncio.Future[StreamTransport] = asyncio.get_running_loop().create_future()

    async def dialled(*how: Any, **more: Any) -> Tunnel:
        """Returns once the tunnel has answered what came behind WELCOME, as it does in the turn in which both came."""
        tunnel = await dial(*how, **more)
        stream = _Bytes()
        transport = await (await tower.tunnel()).open("shout", stream)
        transport.write_eof()
        assert await asyncio.wait_for(stream.reader.read(), 30) == b""
        asked.set_result(transport)
        return tunnel

    monkeypatch.setattr(supervisor, "dial", dialled)
    async with make_member() as member, serving_tower(new_tower()) as tower, shouter() as port:
        await member.agent(tower, services={"shout": f"127.0.0.1:{port}"})
        await asyncio.wait_for(asked, 30)


@pytest.mark.asyncio
async def test_everything_else_is_refused_by_name(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        async with shouter() as port:
            pass
        await member.agent(tower, services={"gone": f"127.0.0.1:{port}"})
        tunnel = await tower.tunnel()
        unknown = await refused(tunnel, "127.0.0.1:22")
        assert unknown.code is Code.UNKNOWN_SERVICE
        assert "declares no service '127.0.0.1:22'; it has gone, kubernetes" in unknown.text
        gone = await refused(tunnel, "gone")
        assert gone.code is Code.DIAL_FAILED
        assert "Connection refused" in gone.text
        assert 'tower_agent_denied_total{reason="unknown_service"} 1.0' in member.metrics.render().decode()


@pytest.mark.asyncio
async def test_a_host_that_asks_for_what_nobody_declared_fills_no_log(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        await member.agent(tower)
        tunnel = await tower.tunnel()
        with structlog.testing.capture_logs() as lines:
            for number in range(20):
                assert (await refused(tunnel, f"nothing-{number}")).code is Code.UNKNOWN_SERVICE
        (said,) = [line for line in lines if line["event"] == "stream-refused"]
        assert said["service"] == "nothing-0"
        assert 'tower_agent_denied_total{reason="unknown_service"} 20.0' in member.metrics.render().decode()


@pytest.mark.asyncio
@pytest.mark.parametrize("accepted", [False, True])
async def test_raw_services_need_tls_that_ends_at_the_tower(
    make_member: MakeMember, tmp_path: Path, accepted: bool
) -> None:
    middle = Pki(tmp_path, "Middle CA")
    ca_file = tmp_path / "middle.pem"
    ca_file.write_bytes(middle.ca_pem)
    async with (
        make_member() as member,
        serving_tower(new_tower(), tls=plain_server(middle, tmp_path)) as tower,
        shouter() as port,
    ):
        await member.agent(
            tower,
            services={"shout": f"127.0.0.1:{port}"},
            ca_file=ca_file,
            raw_services_over_foreign_tls=accepted,
        )
        tunnel = await tower.tunnel()
        if accepted:
            transport = await tunnel.open("shout", _Bytes())
            transport.abort()
        else:
            error = await refused(tunnel, "shout")
            assert error.code is Code.FORBIDDEN
            assert "raw_services_over_foreign_tls" in error.text
        caller = await Caller.open(
            tunnel, tower.caller_context(tower.client("tower:east:admin", "tower:east:cluster-admins"))
        )
        assert (await caller.ask())[0] == 200  # a middle sees ciphertext only of this one
        caller.close()


def plain_server(pki: Pki, folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{pki.name.replace(' ', '-')}.pem")
    return context


@pytest.mark.asyncio
async def test_passthrough_reaches_the_apiserver_itself(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        await member.agent(tower, services={"kubernetes": {"mode": "passthrough"}})
        tunnel = await tower.tunnel()
        context = client_context(ClientTrust(ca_pem=member.pki.ca_pem))
        caller = await Caller.open(tunnel, context, name="127.0.0.1")
        status, seen = await caller.ask("/api", Authorization="Bearer mine")
        assert (status, seen["authorization"], seen["client"]) == (200, "Bearer mine", None)
        caller.close()
        assert member.unreachable == []


@pytest.mark.asyncio
async def test_passthrough_to_an_apiserver_that_is_away_makes_its_probe_due(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        text = member.kubeconfig.read_text()
        member.kubeconfig.write_text(text.replace(str(member.apiserver.port), "1"))
        await member.agent(tower, services={"kubernetes": {"mode": "passthrough"}, "other": "127.0.0.1:1"})
        tunnel = await tower.tunnel()
        assert (await refused(tunnel, "other")).code is Code.DIAL_FAILED
        assert member.unreachable == []
        assert (await refused(tunnel, "kubernetes")).code is Code.DIAL_FAILED
        assert member.unreachable == ["east"]


@pytest.mark.asyncio
async def test_a_tunnel_that_ends_takes_its_relays_with_it(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        held: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                held.set_result(await reader.read())
            except ConnectionResetError:
                held.set_result(b"reset")
            finally:
                writer.close()

        server = await asyncio.start_server(hold, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        await member.agent(tower, services={"hold": f"127.0.0.1:{port}"})
        tunnel = await tower.tunnel()
        await tunnel.open("hold", _Bytes())
        began = time.monotonic()
        tunnel.close(Code.SHUTDOWN, "gone")
        assert await asyncio.wait_for(held, 30) in (b"", b"reset")
        assert time.monotonic() - began < defaults.LINK_FLUSH
        server.close()
        await server.wait_closed()
