"""A link alone: masks, pings, closes, a peer that reads nothing. The peer is a bare socket."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvloop

import protocol.aio.link as link_module
from protocol.aio.busypoll import SHORT, busy_poll
from protocol.aio.link import ANY_PACE, NOTSENT_LOWAT, WRITE_HIGH, Link
from protocol.aio.wsframes import NO_MASK, Op, WebSocketDecoder, frame, header
from protocol.defaults import KIB, MIB
from tests.protocol.aio.tunnels import PATIENCE

pytestmark = pytest.mark.asyncio


class Owner:
    """Keeps what a link brought."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.writable = 0
        self.lost: list[str] = []
        self.changed = asyncio.Event()

    def link_received(self, data: memoryview) -> None:
        self.received += data
        self.changed.set()

    def link_writable(self) -> None:
        self.writable += 1
        self.changed.set()

    def link_lost(self, reason: str) -> None:
        self.lost.append(reason)
        self.changed.set()

    async def change(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.changed.wait()
        self.changed.clear()


@asynccontextmanager
async def linked(*, client: bool, private: bool = False) -> AsyncIterator[tuple[Link, Owner, socket.socket]]:
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    owner = Owner()
    _, link = await loop.create_connection(lambda: Link(client=client, private=private, owner=owner), sock=near)
    try:
        yield link, owner, far
    finally:
        far.close()
        link.abort("the test ends")
        await asyncio.sleep(0)


async def read(far: socket.socket, *, from_client: bool, count: int = 1) -> list[tuple[Op, bytes]]:
    """What the link wrote: control frames and whole messages."""
    decoder, got = WebSocketDecoder(expect_mask=from_client), []
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE):
        while len(got) < count:
            data = await loop.sock_recv(far, 65536)
            if not data:
                break
            got += [(op, bytes(payload)) for op, payload in decoder.feed(memoryview(data))]
    return got


async def raw(far: socket.socket) -> bytes:
    async with asyncio.timeout(PATIENCE):
        return await asyncio.get_running_loop().sock_recv(far, 65536)


async def test_what_one_turn_wrote_leaves_in_one_message() -> None:
    async with linked(client=False) as (link, _, far):
        link.write([b"a", memoryview(b"bc"), b"d"])
        assert await raw(far) == b"\x82\x04abcd"


async def test_a_client_in_the_open_masks_by_a_fresh_key() -> None:
    async with linked(client=True) as (link, _, far):
        link.write([b"same"])
        first = await raw(far)
        link.write([b"same"])
        second = await raw(far)
        assert first[:2] == second[:2] == b"\x82\x84"
        assert first[2:6] != second[2:6]
        assert b"same" not in first
        assert [payload for _, payload in WebSocketDecoder(expect_mask=True).feed(memoryview(first))] == [b"same"]


async def test_a_client_inside_tls_masks_by_zero() -> None:
    async with linked(client=True, private=True) as (link, _, far):
        link.write([b"same"])
        assert await raw(far) == b"\x82\x84\0\0\0\0same"


async def test_pings_are_answered_and_pongs_are_nothing() -> None:
    async with linked(client=False) as (_, owner, far):
        far.send(frame(Op.PING, b"there?", NO_MASK) + frame(Op.PONG, b"", NO_MASK) + frame(Op.BINARY, b"x", NO_MASK))
        assert await read(far, from_client=False) == [(Op.PONG, b"there?")]
        assert bytes(owner.received) == b"x"


async def test_of_pings_that_come_together_the_last_is_answered() -> None:
    async with linked(client=False) as (link, _, far):
        pings = b"".join(frame(Op.PING, str(number).encode(), NO_MASK) for number in range(9))
        link.received(memoryview(pings + frame(Op.BINARY, b"x", NO_MASK)))
        assert await read(far, from_client=False) == [(Op.PONG, b"8")]


async def test_pings_that_nobody_reads_the_answers_of_take_bounded_memory() -> None:
    async with linked(client=False) as (link, owner, far):
        loop = asyncio.get_running_loop()
        storm = frame(Op.PING, b"p" * 125, NO_MASK) * 100  # each read of them is answered once
        for _ in range(200):
            await loop.sock_sendall(far, storm)
        await loop.sock_sendall(far, frame(Op.BINARY, b"end", NO_MASK))
        while bytes(owner.received) != b"end":
            await owner.change()
        assert link._transport is not None
        assert link._transport.get_write_buffer_size() <= 2 * WRITE_HIGH + 256
        assert owner.lost == []


async def test_the_peers_close_is_answered_and_the_owner_told_once() -> None:
    async with linked(client=False) as (link, owner, far):
        far.send(frame(Op.CLOSE, b"\x03\xe8bye", NO_MASK) + frame(Op.BINARY, b"after", NO_MASK))
        assert await read(far, from_client=False) == [(Op.CLOSE, b"\x03\xe8")]
        assert await raw(far) == b""
        assert owner.lost == ["the peer closed the WebSocket"]
        assert bytes(owner.received) == b"", "nothing counts after a close"
        link.close("again")
        link.write([b"ignored"])
        assert owner.lost == ["the peer closed the WebSocket"]


async def test_a_broken_rule_is_answered_with_its_status() -> None:
    async with linked(client=True) as (_, owner, far):
        far.send(frame(Op.BINARY, b"fine", None) + b"\x82\x81\0\0\0\0x")
        assert await read(far, from_client=True) == [(Op.CLOSE, b"\x03\xea")]
        assert bytes(owner.received) == b"fine"
        assert owner.lost == ["the peer broke the WebSocket protocol: a masked frame"]


async def test_a_peer_that_hangs_up_is_told_of() -> None:
    async with linked(client=True) as (_, owner, far):
        far.close()
        await owner.change()
        assert owner.lost == ["the peer closed the connection"]


async def test_a_peer_that_does_not_read_makes_the_link_unwritable_until_it_does() -> None:
    async with linked(client=False) as (link, owner, far):
        while link.writable:
            link.write([bytes(64 * KIB)])
        assert owner.writable == 0
        while not link.writable:
            await raw(far)
        assert owner.writable == 1


async def test_closing_flushes() -> None:
    async with linked(client=False) as (link, owner, far):
        link.write([b"z" * MIB])
        link.close("done")
        assert owner.lost == ["done"]
        got = bytearray()
        while data := await raw(far):
            got += data
        assert got.endswith(b"z" * MIB)


async def test_closing_on_a_peer_that_reads_nothing_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "LINK_FLUSH", 0.05)
    async with linked(client=False) as (link, _, far):
        link.write([b"z" * 4 * MIB])
        link.close("done")
        async with asyncio.timeout(PATIENCE):
            while link._transport is not None:
                await asyncio.sleep(0.01)
        got = 0
        while data := await raw(far):
            got += len(data)
        assert got < 4 * MIB


async def test_a_sockets_unsent_bytes_are_kept_few() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    owner = Owner()
    transport, link = await loop.create_connection(
        lambda: Link(client=True, private=False, owner=owner), *server.sockets[0].getsockname()
    )
    sock = transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, 25) == NOTSENT_LOWAT
    link.abort("the test ends")
    server.close()
    await server.wait_closed()


async def test_a_burst_leaves_no_faster_than_the_pace_that_was_set() -> None:
    async with linked(client=True) as (link, _owner, _far):
        transport = link._transport
        assert transport is not None
        sock = transport.get_extra_info("socket")

        def paced() -> int:
            return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 47, 8), sys.byteorder)

        unset = paced()
        link.pace(0.0)
        assert paced() == unset, "a kernel that is never asked to pace does not"
        link.pace(12_500_000.0)
        assert paced() == 12_500_000
        link.pace(12_600_000.0)
        assert paced() == 12_500_000, "each change is a call of the kernel"
        link.pace(25_000_000.0)
        assert paced() == 25_000_000
        link.pace(1e12)
        assert paced() == ANY_PACE
        link.pace(1_000_000.0)
        link.pace(0.0)
        assert paced() == ANY_PACE


async def test_a_read_that_took_long_is_the_only_one_until_all_others_had_a_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loop of our processes reads on where there is more, 32 times, before it looks at anybody else."""
    monkeypatch.setattr(link_module, "LONG_READ", 0.0)
    monkeypatch.setattr(link_module, "shared_buffer", lambda _loop: memoryview(bytearray(4 * KIB)))
    size = 60 * KIB

    async def reads() -> list[int]:
        loop, owner, turn, seen = asyncio.get_running_loop(), Owner(), 0, []

        def count() -> None:
            nonlocal turn
            turn += 1
            loop.call_soon(count)

        def received(data: memoryview) -> None:
            seen.append(turn)
            Owner.link_received(owner, data)

        owner.link_received = received  # type: ignore[method-assign]
        near, far = socket.socketpair()
        with far:
            far.sendall(header(Op.BINARY, size, NO_MASK) + bytes(size))
            count()
            transport, _ = await loop.create_connection(
                lambda: Link(client=False, private=True, owner=owner), sock=near
            )
            while len(owner.received) < size:
                await owner.change()
            transport.abort()
        return seen

    def run() -> list[int]:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(reads())

    seen = await asyncio.get_running_loop().run_in_executor(None, run)
    assert len(seen) >= size // (4 * KIB)
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(("size", "proven", "polls"), [(100, True, True), (SHORT, True, False), (100, False, False)])
async def test_after_a_short_message_the_loop_looks_for_the_next_after_bulk_or_a_strangers_it_sleeps(
    size: int, proven: bool, polls: bool
) -> None:
    async with linked(client=False, private=True) as (link, owner, _far):
        assert not link.proven, "whoever dials in has yet to prove who it is"
        link.proven = proven
        link.received(memoryview(header(Op.BINARY, size, NO_MASK) + bytes(size)))
        assert len(owner.received) == size
        assert busy_poll(asyncio.get_running_loop()).polling is polls
