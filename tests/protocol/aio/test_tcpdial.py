"""Several addresses of one name: the first to answer wins, silent ones cost a moment, refusals are all named."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from protocol.aio import tcpdial
from protocol.aio.hops import DialError, Hop, unnoted
from protocol.aio.tcpdial import connect_tcp


def one_port(*addresses: str) -> list[socket.socket]:
    """Sockets that are bound to one port, which is free at every address."""
    for _ in range(20):
        bound = [socket.socket() for _ in addresses]
        try:
            for each, address in zip(bound, addresses, strict=True):
                each.bind((address, bound[0].getsockname()[1]))
            return bound
        except OSError as error:  # at another address somebody has it
            for each in bound:
                each.close()
            if error.errno != errno.EADDRINUSE:
                raise
    raise AssertionError(f"no port is free at all of {', '.join(addresses)}")


@contextmanager
def deaf(listener: socket.socket) -> Iterator[int]:
    """A listener whose queue is full: a further SYN is dropped, as a firewall would."""
    with listener:
        address = listener.getsockname()[0]
        listener.listen(0)
        port = listener.getsockname()[1]
        held = [socket.socket() for _ in range(3)]
        for each in held:
            each.setblocking(False)
            each.connect_ex((address, port))
        try:
            yield port
        finally:
            for each in held:
                each.close()


@asynccontextmanager
async def listening(sock: socket.socket) -> AsyncIterator[int]:
    server = await asyncio.start_server(lambda _r, w: w.close(), sock=sock)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


def named(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """`tower.test` has these addresses."""

    async def lookup(_host: str, port: int, _deadline: float) -> list[tuple[int, tuple[str, int]]]:
        return [(socket.AF_INET, (address, port)) for address in addresses]

    monkeypatch.setattr("protocol.aio.tcpdial._lookup", lookup)


@pytest.mark.asyncio
async def test_a_silent_address_costs_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    silent, well = one_port("127.0.0.1", "127.0.0.2")
    with deaf(silent) as port:
        async with listening(well):
            named(monkeypatch, "127.0.0.1", "127.0.0.2")
            hops: list[Hop] = []
            began = time.monotonic()
            sock = await connect_tcp("tower.test", port, 60.0, hops.append)
            assert sock.getpeername()[0] == "127.0.0.2"
            assert time.monotonic() - began < 30.0
            assert [hop.evidence for hop in hops] == ["127.0.0.1, 127.0.0.2", f"127.0.0.2:{port}"]
            sock.close()


@pytest.mark.slow
@pytest.mark.asyncio
async def test_all_that_was_tried_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    silent, refusing = one_port("127.0.0.1", "127.0.0.2")  # which is bound and does not listen
    with deaf(silent) as port, refusing:
        named(monkeypatch, "127.0.0.1", "127.0.0.2")
        with pytest.raises(DialError) as caught:
            await connect_tcp("tower.test", port, 0.8, lambda _hop: None)
    assert caught.value.hop == "tcp"
    assert f"cannot connect to tower.test:{port}" in caught.value.text
    assert "127.0.0.2: Connection refused" in caught.value.text
    assert "127.0.0.1: no answer within 0.8 s" in caught.value.text


@pytest.mark.asyncio
async def test_a_cancelled_dial_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    with deaf(*one_port("127.0.0.1")) as port:
        named(monkeypatch, "127.0.0.1")
        dial = asyncio.create_task(connect_tcp("tower.test", port, 5.0, lambda _hop: None))
        await asyncio.sleep(0.05)
        dial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dial


@pytest.mark.asyncio
async def test_a_single_address_is_dialled_by_itself_and_named_with_what_it_said() -> None:
    hops: list[Hop] = []
    async with listening(*one_port("127.0.0.1")) as port:
        sock = await connect_tcp("127.0.0.1", port, 5.0, hops.append)
        sock.close()
    assert [(hop.name, hop.evidence) for hop in hops] == [("dns", "127.0.0.1"), ("tcp", f"127.0.0.1:{port}")]
    with pytest.raises(DialError, match=rf"cannot connect to 127.0.0.1:{port} \(127.0.0.1: .*refused"):
        await connect_tcp("127.0.0.1", port, 5.0, hops.append)
    with (
        deaf(*one_port("127.0.0.1")) as silent,
        pytest.raises(DialError, match=r"\(127.0.0.1: no answer within 0.1 s\)"),
    ):
        await connect_tcp("127.0.0.1", silent, 0.1, hops.append)


@pytest.mark.asyncio
async def test_an_address_that_led_nowhere_is_the_last_to_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = one_port("127.0.0.1", "127.0.0.2")
    bad.listen()  # it accepts, which is all that can be seen from here
    with bad:
        async with listening(good) as port:
            named(monkeypatch, "127.0.0.1", "127.0.0.2")
            reached = []
            for after in ("", f"127.0.0.1:{port}", f"127.0.0.2:{port}", "10.0.0.1:1"):
                sock = await connect_tcp("tower.test", port, 5.0, lambda _hop: None, after=after)
                reached.append(sock.getpeername()[0])
                sock.close()
    assert reached == ["127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.1"]


@pytest.mark.asyncio
async def test_a_connection_that_is_reset_as_soon_as_it_stands_is_a_failed_hop(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no DialError ends the task that keeps the link."""
    race = tcpdial._race

    async def reset_at_once(host: str, *rest: Any) -> socket.socket:
        sock = await race(host, *rest)
        far, _ = listener.accept()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        await asyncio.get_running_loop().run_in_executor(None, select.select, [sock], [], [], 30)
        return sock

    monkeypatch.setattr(tcpdial, "_race", reset_at_once)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(DialError) as caught:
            await connect_tcp("127.0.0.1", port, 30.0, unnoted)
    assert (caught.value.hop, caught.value.text) == (
        "tcp",
        f"cannot connect to 127.0.0.1:{port}: the connection was reset at once",
    )
