"""What is known of a connection, and said to it, before it has cost anything."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from protocol.aio.listening import accept, bound, turn_away, waited_for
from tests.lab.network import loopbacks


@contextmanager
def connection(
    family: int = socket.AF_INET, address: str = "127.0.0.1"
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends: who dialled, and what was accepted."""
    with socket.create_server((address, 0), family=family) as listening:
        dialled = socket.create_connection(listening.getsockname()[:2], timeout=10)
        accepted, _ = listening.accept()
        with dialled, accepted:
            yield dialled, accepted


@pytest.mark.asyncio
@pytest.mark.parametrize(("family", "address"), loopbacks().items())
async def test_how_long_a_connection_has_waited_is_known(family: int, address: str) -> None:
    with connection(family, address) as (dialled, accepted):
        loop = asyncio.get_running_loop()
        dialled.sendall(b"hello")
        before, least = loop.time(), waited_for(accepted)
        assert least is not None
        async with asyncio.timeout(30):
            while (waited := waited_for(accepted)) is not None and waited < least + 0.1:
                await asyncio.sleep(0.005)
        assert waited is not None
        assert loop.time() - before >= 0.05, "it counts faster than time goes"


def test_who_has_gone_while_it_waited_is_told_from_one_that_waits() -> None:
    with connection() as (dialled, accepted):
        assert waited_for(accepted) is not None
        dialled.close()
        assert waited_for(accepted) is None


def test_of_what_is_no_tcp_nothing_is_known() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert waited_for(one) == 0.0


def test_who_is_turned_away_reads_why_whatever_it_has_sent() -> None:
    for said in (b"", b"x" * 2000):
        with connection() as (dialled, accepted):
            dialled.sendall(said)
            turn_away(accepted, b"later")
            assert accepted.fileno() == -1
            assert dialled.recv(100) == b"later"
            assert dialled.recv(100) == b""


def test_turning_away_who_is_gone_is_no_error() -> None:
    with connection() as (dialled, accepted):
        dialled.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        dialled.close()
        turn_away(accepted, b"later")
        assert accepted.fileno() == -1


@pytest.mark.asyncio
async def test_accepting_that_is_cancelled_loses_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        for _ in range(20):
            accepting = asyncio.create_task(accept(listening))
            await asyncio.sleep(0)
            with socket.create_connection(listening.getsockname(), timeout=10) as dialled:
                await asyncio.sleep(0)
                accepting.cancel()
                await asyncio.wait([accepting])
                async with asyncio.timeout(30):
                    sock, address = await (accept(listening) if accepting.cancelled() else accepting)
                with sock:
                    assert address == dialled.getsockname()


@pytest.mark.asyncio
async def test_a_name_is_bound_at_each_of_its_addresses_and_a_taken_port_leaves_nothing_open() -> None:
    first = await bound("127.0.0.1", 0)
    try:
        first[0].listen()
        with pytest.raises(OSError, match="in use"):
            await bound("127.0.0.1", first[0].getsockname()[1])
    finally:
        for sock in first:
            sock.close()
