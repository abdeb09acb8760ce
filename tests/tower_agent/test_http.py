"""The agent's own requests: one bounded answer, or a hop that says what went wrong."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from certs.tls import ClientTrust, client_context
from protocol.aio.hops import DialError
from protocol.aio.proxydial import DialTarget
from tests.tower_agent.backend import backend
from tower_agent.http import fetch


@pytest.mark.asyncio
async def test_an_answer_is_read_whole() -> None:
    async with backend(lambda request: (201, {"got": request.json()}), None) as served:
        target = DialTarget(host="127.0.0.1", port=served.port, ssl_context=None)
        answer = await fetch(target, "POST", "/things?x=1", body=b'{"a": 1}', headers=[("X-Test", "yes")])
    assert (answer.status, answer.json()) == (201, {"got": {"a": 1}})
    assert served.requests[0].path == "/things?x=1"
    assert served.requests[0].headers["x-test"] == "yes"
    assert served.requests[0].headers["host"] == f"127.0.0.1:{served.port}"


async def answered_with(raw: bytes, *, limit: int = 4096) -> object:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        target = DialTarget(host="127.0.0.1", port=server.sockets[0].getsockname()[1], ssl_context=None)
        return await fetch(target, "GET", "/", limit=limit, deadline=2)
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok",
    ],
)
async def test_every_framing_is_understood(raw: bytes) -> None:
    answer = await answered_with(raw)
    assert answer.body == b"ok"  # type: ignore[attr-defined]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n", "did not answer in HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort", "before its answer was complete"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b"x" * 9000, "more than 4096 bytes"),
        (b"", "before its answer was complete"),
    ],
)
async def test_an_unusable_answer_names_its_reason(raw: bytes, told: str) -> None:
    with pytest.raises(DialError) as caught:
        await answered_with(raw)
    assert caught.value.hop == "http"
    assert told in caught.value.text


@pytest.mark.asyncio
@pytest.mark.parametrize("hop", ["proxy", "tls", "http"])
async def test_time_that_is_up_is_told_of_the_hop_that_it_was_spent_at(hop: str) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionResetError):
            if hop == "tls":
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await reader.read()
        writer.close()
        left.set()

    left = asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    proxy = None if hop == "http" else f"http://127.0.0.1:{port}"
    context = None if hop == "http" else client_context(ClientTrust(system=True))
    target = DialTarget(host="127.0.0.1", port=port, ssl_context=context, proxy=proxy)
    try:
        with pytest.raises(DialError, match=r"did not answer GET /x within 0\.5 s") as caught:
            await fetch(target, "GET", "/x", deadline=0.5)
        async with asyncio.timeout(30):
            await left.wait()
    finally:
        server.close()
        await server.wait_closed()
    assert caught.value.hop == hop


@pytest.mark.asyncio
async def test_a_header_cannot_be_split() -> None:
    async with backend(lambda _request: (200, {}), None) as served:
        target = DialTarget(host="127.0.0.1", port=served.port, ssl_context=None)
        with pytest.raises(ValueError, match="line break"):
            await fetch(target, "GET", "/", headers=[("X", "a\r\nY: b")])
