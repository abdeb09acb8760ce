"""`forward` between a local TCP connection and a WebSocket peer at the admin socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, unix_serve
from websockets.http11 import Request, Response

from daemon.faults import TowerError
from tests.waiting import until
from towerctl import relay
from towerctl.client import AdminClient
from towerctl.relay import Forwarder

pytestmark = pytest.mark.asyncio
Handler = Callable[[ServerConnection], Awaitable[None]]
MIB = 1024 * 1024


class Local:
    """A running forwarder and what it said."""

    def __init__(self, path: Path) -> None:
        self.said: list[str] = []
        self.port = 0
        client = AdminClient(str(path), timeout=30)
        self.forwarder = Forwarder(client, cluster="edge-1", service="db", say=self.said.append)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def said_something(self) -> str:
        await until(lambda: self.said)
        return self.said[0]


@contextlib.asynccontextmanager
async def forwarding(folder: Path, handler: Handler, **options: object) -> AsyncIterator[Local]:
    path = folder / "s"
    async with unix_serve(handler, str(path), compression=None, max_size=None, **options):  # type: ignore[arg-type]
        local = Local(path)
        listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(local.forwarder.serve("127.0.0.1", 0, ready=listening.set_result))
        try:
            local.port = await asyncio.wait_for(listening, 30)
            yield local
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def echo(peer: ServerConnection) -> None:
    """Sends everything back, and ends when the caller has ended."""
    async for message in peer:
        await peer.send(message)
        if message == "":
            return


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_bytes_come_back_as_they_went_and_each_end_is_passed_on(folder: Path) -> None:
    sent = bytes(range(256)) * 20_000  # 5 MB: many messages, more than any buffer on the way
    async with forwarding(folder, echo) as local:
        reader, writer = await local.connect()

        async def send() -> None:
            writer.write(sent)
            await writer.drain()
            writer.write_eof()

        received, _ = await asyncio.gather(reader.read(-1), send())
        await close(writer)
    assert received == sent
    assert local.said == []


async def test_one_connection_too_many_is_refused_and_said_and_the_others_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "MAX_CONNECTIONS", 2)
    async with forwarding(folder, echo) as local:
        held = [await local.connect() for _ in range(2)]
        for reader, writer in held:
            writer.write(b"one")
            assert await reader.readexactly(3) == b"one"
        reader, writer = await local.connect()
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(30):
                assert await reader.read() == b""
        await close(writer)
        assert local.said == ["more than 2 connections at once: one was refused"]
        for reader, writer in held:
            writer.write(b"two")
            assert await reader.readexactly(3) == b"two"
            await close(writer)


async def test_the_path_names_cluster_and_service(folder: Path) -> None:
    paths: list[str] = []

    async def look(peer: ServerConnection) -> None:
        assert peer.request is not None
        paths.append(peer.request.path)
        paths.append(peer.request.headers["Host"])

    async with forwarding(folder, look) as local:
        reader, writer = await local.connect()
        assert await reader.read() == b""
        await close(writer)
    assert paths == ["/v1/clusters/edge-1/forward/db", "localhost"]


async def test_the_member_may_end_first_and_still_read(folder: Path) -> None:
    got = bytearray()

    async def speak_first(peer: ServerConnection) -> None:
        await peer.send(b"220 hello")
        await peer.send("")
        async for message in peer:
            if message == "":
                return
            assert isinstance(message, bytes)
            got.extend(message)

    async with forwarding(folder, speak_first) as local:
        reader, writer = await local.connect()
        assert await reader.read() == b"220 hello"
        writer.write(b"after the end")
        writer.write_eof()
        await close(writer)
        await until(lambda: bytes(got) == b"after the end")


async def test_bytes_before_a_close_all_arrive(folder: Path) -> None:
    async def burst(peer: ServerConnection) -> None:
        for _ in range(32):
            await peer.send(b"x" * (MIB // 4))

    async with forwarding(folder, burst) as local:
        reader, writer = await local.connect()
        assert len(await reader.read(-1)) == 8 * MIB
        await close(writer)


async def test_a_local_side_that_still_speaks_when_all_was_said_gets_all_of_it(folder: Path) -> None:
    """A socket that is closed at once answers what still comes by a reset, which eats what is unread."""
    said = b"x" * (MIB // 2)

    async def burst(peer: ServerConnection) -> None:
        await peer.send(said)

    async with forwarding(folder, burst) as local:
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", local.port))
            received = 0
            async with asyncio.timeout(30):
                while received < len(said):
                    await loop.sock_sendall(sock, b"still here")
                    await asyncio.sleep(0.005)  # slower than what it is sent
                    data = await loop.sock_recv(sock, 16384)
                    assert data, "an end before all of it"
                    received += len(data)
                assert await loop.sock_recv(sock, 1) == b""
        assert local.said == []


async def test_a_local_side_that_does_not_go_is_let_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("towerctl.relay.FLUSH_DEADLINE", 0.2)

    async def greet(peer: ServerConnection) -> None:
        await peer.send(b"220 hello")

    async with forwarding(folder, greet) as local:
        reader, writer = await local.connect()
        assert await reader.read() == b"220 hello"
        await until(lambda: not local.forwarder._tasks)
        assert local.said == [], "it has taken everything"
        await close(writer)


@pytest.mark.slow
async def test_a_local_reader_that_stops_stops_its_writer(folder: Path) -> None:
    sent = 0
    stalled = asyncio.Event()

    async def flood(peer: ServerConnection) -> None:
        nonlocal sent
        while True:
            try:
                await asyncio.wait_for(peer.send(b"x" * MIB), 0.3)
            except TimeoutError:
                stalled.set()
                return
            sent += 1

    async with forwarding(folder, flood) as local:
        _, writer = await local.connect()
        await asyncio.wait_for(stalled.wait(), 20)
        await close(writer)
    assert sent < 64, "what nobody reads must not pile up"


async def test_a_refusal_closes_that_connection_and_says_why(folder: Path) -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        response = connection.respond(404, "")
        response.body = b'{"kind": "Error", "code": "TWR310", "message": "db is not declared", "mend": "declare it"}'
        del response.headers["Content-Length"]
        response.headers["Content-Length"] = str(len(response.body))
        return response

    async with forwarding(folder, echo, process_request=refuse) as local:
        reader, writer = await local.connect()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        assert "TWR310 db is not declared" in await local.said_something()
        await close(writer)
        with pytest.raises(TowerError, match="db is not declared") as refused:
            await local.forwarder.probe()
        assert refused.value.code == "TWR310"


async def test_a_cut_stream_is_said_and_the_others_go_on(folder: Path) -> None:
    async def cut(peer: ServerConnection) -> None:
        first = await peer.recv()
        if first == b"cut":
            await peer.close(1011, "the tunnel was lost")
        else:
            await peer.send(first)
            await echo(peer)

    async with forwarding(folder, cut) as local:
        (one, one_out), (two, two_out) = await local.connect(), await local.connect()
        two_out.write(b"hello")
        assert await two.readexactly(5) == b"hello"
        one_out.write(b"cut")
        with contextlib.suppress(ConnectionResetError):
            assert await one.read() == b""
        assert "the tunnel was lost" in await local.said_something()
        two_out.write(b"still here")
        assert await two.readexactly(10) == b"still here"
        await close(one_out)
        await close(two_out)


async def test_a_caller_that_hangs_up_ends_its_stream(folder: Path) -> None:
    ended = asyncio.Event()

    async def watch(peer: ServerConnection) -> None:
        await peer.send(b"x")
        await peer.wait_closed()
        ended.set()

    async with forwarding(folder, watch) as local:
        reader, writer = await local.connect()
        await reader.readexactly(1)
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        writer.transport.abort()
        await asyncio.wait_for(ended.wait(), 30)


async def test_no_server_is_said_before_anything_listens(folder: Path) -> None:
    with pytest.raises(TowerError, match="no tower server runs here"):
        await Local(folder / "nothing").forwarder.probe()


async def test_a_port_that_is_taken_names_its_mend(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TowerError, match=f"cannot listen on 127.0.0.1:{port}") as refused:
            await Local(folder / "s").forwarder.serve("127.0.0.1", port, ready=lambda _: None)
    assert refused.value.message.endswith(f"127.0.0.1:{port}: Address already in use")
    assert "choose another local port" in refused.value.mend


async def test_a_name_that_leads_nowhere_names_its_mend(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_name(*_args: object, **_more: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", no_name)
    with pytest.raises(TowerError, match="cannot listen on nowhere:0: Name or service not known") as refused:
        await Local(folder / "s").forwarder.serve("nowhere", 0, ready=lambda _: None)
    assert refused.value.mend.startswith("name an address of this machine")


async def test_an_address_of_another_machine_names_its_mend(folder: Path) -> None:
    with pytest.raises(TowerError) as refused:
        await Local(folder / "s").forwarder.serve("192.0.2.1", 0, ready=lambda _: None)
    assert refused.value.message == "cannot listen on 192.0.2.1:0: Cannot assign requested address"
    assert refused.value.mend.startswith("name an address of this machine")
    assert "ADDRESS:PORT" in refused.value.mend
    assert "--" not in refused.value.mend
