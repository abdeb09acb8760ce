"""A relay between two sockets, and between a socket and a stream: bytes, half-closes, back-pressure, ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

import protocol.aio.splice as splice_module
from protocol.aio.splice import Splice, Transferred
from protocol.aio.stream import IncomingStream
from protocol.defaults import KIB, MIB
from protocol.errors import StreamReset
from tests.protocol.aio.tunnels import PATIENCE, Recorder, tower, void

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def spliced(*, start: bool = True) -> AsyncIterator[tuple[Splice, socket.socket, socket.socket]]:
    """A splice and the far ends of its two sockets."""
    loop = asyncio.get_running_loop()
    pairs = [socket.socketpair() for _ in range(2)]
    for pair in pairs:
        for sock in pair:
            sock.setblocking(False)
    splice = Splice()
    await loop.create_connection(lambda: splice.first, sock=pairs[0][0])
    await loop.create_connection(lambda: splice.second, sock=pairs[1][0])
    if start:
        splice.start()
    try:
        yield splice, pairs[0][1], pairs[1][1]
    finally:
        pairs[0][1].close()
        pairs[1][1].close()
        splice.abort()
        async with asyncio.timeout(PATIENCE):
            await splice.done


async def take(sock: socket.socket, count: int) -> bytes:
    got = bytearray()
    async with asyncio.timeout(PATIENCE):
        while len(got) < count and (data := await asyncio.get_running_loop().sock_recv(sock, 65536)):
            got += data
    return bytes(got)


async def ended(splice: Splice) -> Transferred:
    async with asyncio.timeout(PATIENCE):
        return await splice.done


async def test_bytes_go_both_ways_and_both_finishes_end_it() -> None:
    async with spliced() as (splice, one, two):
        one.send(b"question")
        one.shutdown(socket.SHUT_WR)
        assert await take(two, 100) == b"question"
        two.send(b"the answer")
        assert await take(one, 10) == b"the answer"
        assert not splice.done.done(), "one direction is still open"
        two.close()
        assert await take(one, 1) == b""
        assert await ended(splice) == Transferred(8, 10, None)


async def test_what_came_before_the_start_is_relayed() -> None:
    async with spliced(start=False) as (splice, one, two):
        one.send(b"early")
        one.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.01)
        splice.start()
        assert await take(two, 100) == b"early"


async def test_a_reader_that_stops_stops_the_writer() -> None:
    async with spliced() as (splice, one, two):
        sent = await fill(one)
        assert sent < 8 * MIB, "what nobody reads must not pile up here"
        one.shutdown(socket.SHUT_WR)
        assert len(await take(two, sent + 1)) == sent
        two.close()
        assert (await ended(splice)).forward == sent


async def fill(sock: socket.socket) -> int:
    """Write until nothing has gone for a while; how much went."""
    sent, stuck = 0, 0
    while stuck < 20 and sent < 16 * MIB:
        try:
            sent += sock.send(bytes(32 * KIB))
            stuck = 0
        except BlockingIOError:
            stuck += 1
            await asyncio.sleep(0.005)
    return sent


async def test_a_broken_end_does_not_look_orderly_to_the_other() -> None:
    caller = Recorder()
    splices: list[Splice] = []

    class Upstream(asyncio.Protocol):
        """A destination that resets its connection after the first bytes."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.transport.abort()  # type: ignore[attr-defined]

    loop = asyncio.get_running_loop()
    upstream = await loop.create_server(Upstream, "127.0.0.1", 0)

    def on_stream(incoming: IncomingStream) -> None:
        splice = Splice()
        splices.append(splice)
        incoming.accept(splice.first)

        async def connect() -> None:
            await loop.create_connection(lambda: splice.second, *upstream.sockets[0].getsockname())
            splice.start()

        connecting.append(asyncio.ensure_future(connect()))

    connecting: list[asyncio.Future[None]] = []
    async with tower() as made:
        server, _ = await made.pair(on_stream)
        stream = await server.open("redis", caller)
        stream.write(b"x")
        await caller.saw("lost")
        assert isinstance(caller.error, StreamReset)
        assert isinstance((await ended(splices[0])).error, ConnectionError)
        await asyncio.gather(*connecting)
    upstream.close()
    await upstream.wait_closed()


async def test_an_end_that_is_lost_before_the_other_stood_ends_both() -> None:
    splice = Splice()
    near, far = socket.socketpair()
    near.setblocking(False)
    async with tower() as made:
        server, _ = await made.pair(lambda incoming: void(incoming.accept(Recorder())))
        stream = await server.open("redis", splice.first)
        stream.abort()
        await asyncio.get_running_loop().create_connection(lambda: splice.second, sock=near)
        splice.start()
        far.close()
        assert (await ended(splice)).forward == 0


async def test_a_reader_that_never_reads_the_rest_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splice_module, "CALLER_IDLE", 0.05)
    async with spliced() as (splice, one, _):
        leaving, waiting = splice.first.transport, splice.second.transport
        assert leaving is not None
        assert waiting is not None
        while not waiting.get_write_buffer_size():
            one.send(bytes(4 * KIB))
            await asyncio.sleep(0.001)
        leaving.close()  # as a stream does that both ends have finished
        assert (await ended(splice)).backward == 0


SAID = bytes(range(256)) * 6000


def leave(splice: Splice) -> None:
    """The first end has said all and goes in order, as the channel of a peer without half-close does."""
    transport = splice.first.transport
    assert transport is not None
    assert splice.second.transport is not None
    splice.second.transport.write(SAID)
    transport.close()


async def test_a_peer_that_still_speaks_when_all_was_said_gets_all_of_it() -> None:
    """A TCP socket that is closed at once answers what still comes by a reset, which eats what is unread."""
    loop = asyncio.get_running_loop()
    splice = Splice()

    near, far = socket.socketpair()
    server = await loop.create_server(lambda: splice.second, "127.0.0.1", 0)
    with socket.socket() as peer, far:
        near.setblocking(False)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
        peer.setblocking(False)
        await loop.sock_connect(peer, server.sockets[0].getsockname())
        await loop.create_connection(lambda: splice.first, sock=near)
        async with asyncio.timeout(PATIENCE):
            while splice.second.transport is None:
                await asyncio.sleep(0.001)
        splice.start()
        leave(splice)
        received = bytearray()
        async with asyncio.timeout(PATIENCE):
            while len(received) < len(SAID):
                await loop.sock_sendall(peer, b"still here")
                data = await loop.sock_recv(peer, 16384)
                assert data, "an end before all of it"
                received += data
            assert await loop.sock_recv(peer, 1) == b""
        assert received == SAID
        assert not splice.done.done(), "it goes when its peer goes"
        peer.shutdown(socket.SHUT_WR)
        assert (await ended(splice)).error is None
    server.close()
    await server.wait_closed()


async def test_a_peer_that_does_not_go_when_all_was_said_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splice_module, "LINGER", 0.05)
    async with spliced() as (splice, _, two):
        leave(splice)
        assert await take(two, len(SAID)) == SAID
        await ended(splice)
