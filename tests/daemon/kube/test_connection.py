"""One kept connection: back-pressure, what ends it, and bytes that nobody asked for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from daemon.kube import connection as module
from daemon.kube.connection import MAX_CONNECTIONS, UNREAD_BYTES, Connection, Connections, Cut
from tests.daemon.kube.fakeapi import PATIENCE, Answer, FakeApi, Request

pytestmark = pytest.mark.asyncio
ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def against(*answers: bytes, hold: bool = False) -> AsyncIterator[Connection]:
    """A connection to a peer that answers each request with such bytes, and then ends (or stays, silent)."""
    done = asyncio.Event()

    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            for answer in answers:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
            if hold:
                await done.wait()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has hung up
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    loop = asyncio.get_running_loop()
    transport, made = await loop.create_connection(Connection, "127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        async with asyncio.timeout(PATIENCE):
            yield made
    finally:
        done.set()
        transport.abort()
        server.close()
        await server.wait_closed()
        if serving:
            await asyncio.wait(serving, timeout=PATIENCE)


async def body(connection: Connection) -> bytes:
    pieces = []
    while piece := await connection.read():
        pieces.append(piece)
    return b"".join(pieces)


async def test_two_exchanges_on_one_connection() -> None:
    one = b"HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 3\r\n\r\none"
    two = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"
    async with against(one, two, hold=True) as connection:
        head = await connection.ask(ASK)
        assert (head.status, head.headers["x-a"], await body(connection)) == (200, "b", b"one")
        assert connection.kept
        head = await connection.ask(ASK)
        assert (head.status, await body(connection)) == (404, b"two")
        assert connection.kept


async def test_a_body_without_length_ends_with_its_connection() -> None:
    async with against(b"HTTP/1.1 200 OK\r\n\r\nall of it") as connection:
        await connection.ask(ASK)
        assert await body(connection) == b"all of it"
        assert not connection.kept


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"", "closed the connection"),
        (b"SSH-2.0-x\r\n", "did not answer in HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "closed the connection"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "did not answer in HTTP/1.1"),
        (b"HTTP/1.1 101 Go\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "nobody asked for"),
        (b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 70000 + b"\r\n\r\n", "HTTP/1.1"),
    ],
)
async def test_a_broken_answer_is_a_cut_that_says_how(answer: bytes, told: str) -> None:
    async with against(answer) as connection:
        with pytest.raises(Cut, match=told):
            await read_all(connection)
        assert not connection.kept


async def read_all(connection: Connection) -> bytes:
    await connection.ask(ASK)
    return await body(connection)


async def test_bytes_after_an_answer_end_the_connection() -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    for surplus in (b"HTTP/1.1 200 Evil\r\nContent-Length: 0\r\n\r\n", b"\0\0\0"):
        async with against(whole + surplus, hold=True) as connection:
            assert await read_all(connection) == b"ok"
            assert not connection.kept


async def test_a_reader_that_stops_stops_the_peer() -> None:
    size = 64 * UNREAD_BYTES
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
    async with against(head + b"x" * size, hold=True) as connection:
        await connection.ask(ASK)
        held: list[int] = []
        for _ in range(200):
            await asyncio.sleep(0.001)
            held.append(connection._unread)
        assert max(held) < 3 * UNREAD_BYTES, "what is not read waits at the peer"
        assert len(await body(connection)) == size


async def test_exchanges_take_turns_and_idle_connections_are_dropped_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def respond(_request: Request) -> Answer:
        await asyncio.sleep(0.01)
        return Answer(body={})

    async with FakeApi(respond).serving() as api:
        pool = Connections(api)

        async def one() -> None:
            async with pool.use() as connection:
                await connection.ask(ASK)
                await body(connection)

        await asyncio.gather(*(one() for _ in range(4 * MAX_CONNECTIONS)))
        assert api.connections == MAX_CONNECTIONS
        await one()
        assert api.connections == MAX_CONNECTIONS
        monkeypatch.setattr(module, "KEEP_IDLE", -1.0)
        await one()
        assert api.connections == MAX_CONNECTIONS + 1
        pool.close()


async def test_an_exchange_that_is_given_up_takes_its_connection_along() -> None:
    async with FakeApi(lambda _request: Answer(body={})).serving() as api:
        pool = Connections(api)
        with contextlib.suppress(LookupError):
            async with pool.use() as connection:
                await connection.ask(ASK)
                raise LookupError
        async with pool.use() as connection:
            await connection.ask(ASK)
            await body(connection)
        assert api.connections == 2
        pool.close()
