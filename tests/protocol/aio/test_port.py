"""The tunnel port's limits against a peer that sets out to use them up: it keeps out nobody but its own neighbours."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from protocol.aio.hops import DialError
from protocol.aio.listener import Admission
from protocol.aio.port import network_of
from protocol.constants import Code
from protocol.handshake import Hello
from tests.protocol.aio.rawagent import RawAgent, connected
from tests.protocol.aio.tunnels import PATIENCE, Tower, admitted, quiet, tower

SITTER = "127.0.0.2"  # loopback has many addresses: the honest agent comes from another one


async def sit(made: Tower, context: ssl.SSLContext | None) -> RawAgent:
    return RawAgent(*await asyncio.open_connection(*made.address, ssl=context, local_addr=(SITTER, 0)))


STAGES = ["tcp", "tls", "head", "upgraded", "hello"]


async def sitters(made: Tower, stage: str, count: int) -> list[RawAgent]:
    """`count` of them, each gone as far as `stage`."""
    idle = [await sit(made, None if stage == "tcp" else made.client_context) for _ in range(count)]
    for raw in idle:
        if stage == "head":
            raw.write(b"GET / HTTP/1.1\r\n")
        elif stage == "upgraded":
            await raw.upgrade()
        elif stage == "hello":
            await raw.hello()
    async with asyncio.timeout(PATIENCE):
        while len(here := made.listener._waiting.all()) < count or (
            stage == "head" and any(one.silent for one in here)
        ):
            await asyncio.sleep(0.005)
    return idle


async def told(raw: RawAgent, stage: str) -> None:
    """Who has said something hears when to come back; who has said nothing is cut."""
    if stage in ("tcp", "tls"):
        assert await raw.rest() == b""
    elif stage == "head":
        said = (await raw.rest()).decode()
        assert said.startswith("HTTP/1.1 503 ")
        assert "Retry-After: 5\r\n" in said
    else:
        rejected = await raw.rejected()
        assert (rejected["code"], rejected["retry_after"]) == (Code.BUSY, 5)


@pytest.mark.asyncio
@pytest.mark.parametrize("stage", STAGES)
async def test_one_network_does_not_take_the_places_of_all_others(contexts: Any, stage: str) -> None:
    async with tower(*contexts, max_unauthenticated=4) as made:
        idle = await sitters(made, stage, 4)
        try:
            await made.dial(instance="honest")
            refusal = await made.refusal()
            assert refusal.code is Code.BUSY
            assert "most of them from there" in refusal.text
            await told(idle[0], stage)  # its oldest gave way
            assert len(made.listener._waiting) == 3  # and the others still wait
        finally:
            for raw in idle:
                raw.writer.transport.abort()


@pytest.mark.asyncio
async def test_who_sits_and_says_nothing_keeps_out_not_even_its_neighbours(
    contexts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.aio.strangers.YOUNG", 0.0)  # whoever has said nothing is old at once
    async with tower(*contexts, max_unauthenticated=4) as made:
        idle = await sitters(made, "tcp", 4)
        try:
            neighbour = await sit(made, made.client_context)
            idle.append(neighbour)
            await neighbour.join()
        finally:
            for raw in idle:
                raw.writer.transport.abort()


class Flood:
    """Connections that say nothing, each opened anew once it has been closed."""

    def __init__(self, made: Tower, count: int) -> None:
        self._made, self._count = made, count
        self._held: list[socket.socket] = []
        self.opened = 0

    def renew(self) -> None:
        self._held = [each for each in self._held if not self._over(each)]
        while len(self._held) < self._count:
            sock = socket.socket()
            sock.setblocking(False)
            sock.bind((SITTER, 0))
            sock.connect_ex(self._made.address)
            self._held.append(sock)
            self.opened += 1

    @staticmethod
    def _over(sock: socket.socket) -> bool:
        try:
            sock.recv(100)
        except BlockingIOError:
            return False
        except OSError:
            pass
        sock.close()
        return True

    async def run(self) -> None:
        try:
            while True:
                self.renew()
                await asyncio.sleep(0.05)
        finally:
            for each in self._held:
                each.close()


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_flood_of_connections_that_say_nothing_keeps_out_no_agent(contexts: Any) -> None:
    """All places are taken by one that takes each anew that it has lost, before and while agents come in a storm."""
    async with tower(*contexts, max_unauthenticated=96) as made:
        flood = Flood(made, 120)
        flooding = asyncio.create_task(flood.run(), name="flood")
        try:
            async with asyncio.timeout(PATIENCE):
                while flood.opened < 300:
                    await asyncio.sleep(0.01)
                assert len(made.listener._waiting) == 96
                for batch in range(3):
                    await asyncio.gather(*(made.dial(instance=f"honest-{batch}-{each}") for each in range(12)))
        finally:
            flooding.cancel()
            await asyncio.wait([flooding])
        assert made.tunnels.qsize() == 36


@asynccontextmanager
async def storm(
    monkeypatch: pytest.MonkeyPatch, *contexts: Any, **more: Any
) -> AsyncIterator[tuple[Tower, asyncio.Event]]:
    """A port that has two handshakes under way, of agents that come in when the event is set, and takes no third."""
    monkeypatch.setattr("protocol.aio.strangers.UNDER_WAY", 2)
    monkeypatch.setattr("protocol.aio.strangers.PROVEN", 1)
    let_in = asyncio.Event()

    async def slowly(hello: Hello, identity: Any, remote: str) -> Admission:
        if not hello.instance.startswith("first"):
            await let_in.wait()
        return await admitted(hello, identity, remote)

    async with tower(*contexts, authenticate=slowly, **more) as made:
        await made.dial(instance="first")
        under_way = [asyncio.create_task(made.dial(instance=f"second-{each}")) for each in range(2)]
        try:
            async with asyncio.timeout(PATIENCE):
                while [getattr(each, "_stage", "") for each in made.listener._waiting.all()] != ["authenticate"] * 2:
                    await asyncio.sleep(0.005)
            yield made, let_in
        finally:
            let_in.set()
            await asyncio.gather(*under_way)


@pytest.mark.asyncio
async def test_in_a_storm_who_finds_no_place_waits_in_the_kernel_and_is_served(
    contexts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.aio.strangers.YOUNG", PATIENCE)
    async with storm(monkeypatch, *contexts) as (made, let_in):
        others = [asyncio.create_task(made.dial(instance=f"third-{each}")) for each in range(20)]
        idle = await sit(made, None)  # what connects is not accepted, and is not refused
        await quiet(made.dialled[0])
        assert len(made.listener._waiting) == 2
        let_in.set()
        await asyncio.gather(*others)
        assert made.refusals == []
        idle.writer.transport.abort()


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize("private", [True, False], ids=["tls", "plain"])
async def test_who_has_waited_too_long_is_told_when_to_come_back(
    contexts: Any, monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    monkeypatch.setattr("protocol.aio.strangers.YOUNG", 1.0)
    monkeypatch.setattr("protocol.aio.port.LATE", 0.01)
    async with storm(monkeypatch, *(contexts if private else ()), deadline=30.0) as (made, _):
        with pytest.raises(DialError, match="no room for another") as caught:
            await made.dial(instance="third")
        assert (caught.value.hop, caught.value.retry_after) == ("tls" if private else "http", 5.0)
        assert caught.value.code == (Code.BUSY if private else 503)
        refusal = await made.refusal()
        assert (refusal.stage, refusal.code) == ("tls", Code.BUSY)
        assert "it has waited" in refusal.text


@pytest.mark.asyncio
@pytest.mark.parametrize("endless", [b"0\r\nX: ", b"1;"], ids=["trailer", "extension"])
async def test_what_is_no_body_is_bounded_too(endless: bytes) -> None:
    async with tower() as made, connected(made) as raw:
        raw.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + endless + b"x" * 200_000)
        assert (await raw.head()).startswith("HTTP/1.1 413 ")


@pytest.mark.asyncio
async def test_a_defect_at_one_connection_does_not_end_the_port(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tower() as made:
        link, defects = made.listener.link, [ValueError("a defect")]

        def broken(_listener: Any, **more: Any) -> Any:
            if defects:
                raise defects.pop()
            return link(**more)

        monkeypatch.setattr(type(made.listener), "link", broken)
        reader, writer = await asyncio.open_connection(*made.address)
        async with asyncio.timeout(PATIENCE):
            assert await reader.read() == b""
        writer.close()
        async with connected(made) as raw:
            raw.write(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await raw.head()).startswith("HTTP/1.1 ")
    assert "could not be taken" in caplog.text


@pytest.mark.parametrize(
    ("remote", "network"),
    [
        ("192.0.2.7:4321", "192.0.2.7"),
        ("::ffff:192.0.2.7:4321", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6:4321", "2001:db8:1:2::/64"),
        ("fe80::1%eth0:4321", "fe80::/64"),
        ("local", "local"),
    ],
)
def test_networks(remote: str, network: str) -> None:
    assert network_of(remote) == network
