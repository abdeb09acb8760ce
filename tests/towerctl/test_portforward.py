"""The port-forward's wire, against a stand-in of the apiserver that speaks it; a real one is in tests/kubernetes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from daemon.kube.access import Access
from daemon.kube.kubeconfig import Kubeconfig
from tests.lab.pki import ClusterCA
from towerctl.portforward import CHANNELS, PortForward

pytestmark = pytest.mark.asyncio
Pod = Callable[[ServerConnection], Awaitable[None]]
PORT = (8445).to_bytes(2, "little")


@contextlib.asynccontextmanager
async def apiserver(
    folder: Path, pod: Pod, *, status: int | None = None
) -> AsyncIterator[tuple[PortForward, list[Any]]]:
    ca = ClusterCA(folder, "test-ca")
    files = ca.server("apiserver", ["127.0.0.1"])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.key)
    seen: list[Any] = []

    def admit(connection: ServerConnection, request: Request) -> Response | None:
        seen.append((request.path, request.headers.get("Authorization")))
        if status is None:
            return None
        return connection.respond(status, '{"kind": "Status", "message": "pods \\"x\\" is forbidden: no"}')

    async with serve(pod, "127.0.0.1", 0, ssl=context, subprotocols=[CHANNELS], process_request=admit) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        config = Kubeconfig("test", f"https://127.0.0.1:{port}", ca.pem, None, None, None, "secret", None, None)
        yield PortForward(Access(config), namespace="tower-system", pod="tower-server-0", port=8445), seen


@contextlib.asynccontextmanager
async def local(forward: PortForward) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the near end."""
    ended = asyncio.Event()

    async def near(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await forward.relay(reader, writer, timeout=10.0)
        ended.set()

    server = await asyncio.start_server(near, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        server.close()
        async with asyncio.timeout(20):
            await ended.wait()


async def test_bytes_go_both_ways_and_the_pods_end_is_the_end(tmp_path: Path) -> None:
    async def pod(socket: ServerConnection) -> None:
        await socket.send(b"\0" + PORT)
        await socket.send(b"\1" + PORT)
        for _ in range(2):
            message = await socket.recv()
            assert isinstance(message, bytes)
            await socket.send(b"\0" + message[1:].upper())

    async with apiserver(tmp_path, pod) as (forward, seen), local(forward) as (reader, writer):
        for said in (b"hello", b"x" * 5000):
            writer.write(said)
            assert await reader.readexactly(len(said)) == said.upper()
        assert await reader.read() == b""
    assert seen == [("/api/v1/namespaces/tower-system/pods/tower-server-0/portforward?ports=8445", "Bearer secret")]
    assert forward.fault is None


async def test_what_goes_wrong_at_the_pods_end_is_said(tmp_path: Path) -> None:
    async def pod(socket: ServerConnection) -> None:
        await socket.send(b"\0" + PORT)
        await socket.send(b"\1" + PORT)
        await socket.send(b"\1connection refused")
        await socket.wait_closed()

    async with apiserver(tmp_path, pod) as (forward, _), local(forward) as (reader, _):
        assert await reader.read() == b""
    assert forward.fault is not None
    assert forward.fault.code == "TWR616"
    assert "pod tower-server-0 in tower-system, port 8445: connection refused" in forward.fault.message


async def test_a_right_that_is_missing_is_named_with_the_role_that_has_it(tmp_path: Path) -> None:
    async def pod(_: ServerConnection) -> None: ...

    async with apiserver(tmp_path, pod, status=403) as (forward, _), local(forward) as (reader, _):
        assert await reader.read() == b""
    assert forward.fault is not None
    assert 'pods "x" is forbidden' in forward.fault.message
    assert "tower-operator" in (forward.fault.mend or "")


async def test_an_apiserver_that_is_gone_is_named(tmp_path: Path) -> None:
    async def pod(_: ServerConnection) -> None: ...

    async with apiserver(tmp_path, pod) as (forward, _):
        pass
    async with local(forward) as (reader, _):
        assert await reader.read() == b""
    assert forward.fault is not None
    assert "opens no port-forward" in forward.fault.message
