"""The channels of a host of the dialect: which are taken, what passes, and what the host hears of the others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from daemon.metrics import AgentMetrics
from daemon.supervisor import Supervisor
from protocol.aio.sshdial import dial_host
from protocol.errors import StreamRefused
from tests.protocol.aio.sshhost import SshHost, ssh_host
from tests.protocol.aio.sshpeers import Collect, channel_limits
from tower_agent.legacychannels import LegacyChannels
from tower_agent.shipment import Shipment

pytestmark = pytest.mark.asyncio
PATIENCE = 20.0
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def destination(serve: Serve) -> AsyncIterator[str]:
    ended: list[asyncio.Event] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        over = asyncio.Event()
        ended.append(over)
        try:
            await serve(reader, writer)
        finally:
            writer.transport.abort()
            over.set()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield "127.0.0.1:%d" % server.sockets[0].getsockname()[1]  # noqa: UP031
    finally:
        server.close()
        async with asyncio.timeout(PATIENCE):
            for each in ended:
                await each.wait()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def serving(kubernetes: str) -> AsyncIterator[tuple[SshHost, LegacyChannels, AgentMetrics]]:
    """A host, and an agent's channels behind its session."""
    metrics = AgentMetrics(version="1")
    tasks = Supervisor(on_failure=lambda name, error: pytest.fail(f"{name}: {error!r}"))
    channels = LegacyChannels(metrics=metrics, tasks=tasks)
    channels.announce(Shipment(kubernetes, "console.svc:80", b"", b"", b"", "t"))
    async with ssh_host() as host:
        session = await dial_host(host.target, limits=channel_limits(), on_channel=channels.on_channel)
        async with asyncio.timeout(PATIENCE):
            await host.owners[0].ready.wait()
        try:
            yield host, channels, metrics
        finally:
            channels.close()
            session.close("the test is over")
            await tasks.close()
            await asyncio.sleep(0.05)


async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers when its input has ended."""
    writer.write((await reader.read()).upper())
    writer.write_eof()
    await writer.drain()
    await reader.read()


async def test_half_close_passes_both_ways() -> None:
    async with destination(upper) as address, serving(address) as (host, channels, metrics):
        end = Collect()
        channel = host.sessions[0].open(address, end)
        async with asyncio.timeout(PATIENCE):
            await end.accepted.wait()
            channel.write(b"what was said before the end")
            channel.write_eof()
            await end.eof.wait()
            assert bytes(end.data) == b"WHAT WAS SAID BEFORE THE END"
            assert await end.lost is None
        assert channels.moved == 2 * 28
        assert 'tower_agent_streams{service="kubernetes"} 0.0' in metrics.render().decode()


async def test_only_what_was_announced_is_dialled_word_for_word() -> None:
    async def never(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        pytest.fail("it was dialled")

    async with destination(never) as address, serving("127.0.0.1:6443") as (host, _, metrics):
        for asked in (address, "127.0.0.1:06443", "127.0.0.1:6443\n", "", "169.254.169.254:80"):
            end = Collect()
            host.sessions[0].open(asked, end)
            async with asyncio.timeout(PATIENCE):
                lost = await end.lost
            assert isinstance(lost, StreamRefused)
            assert "this agent reaches console.svc:80 and 127.0.0.1:6443, nothing else" in str(lost)
        assert 'tower_agent_denied_total{reason="prohibited"} 5.0' in metrics.render().decode()


async def test_a_destination_that_cannot_be_reached_is_a_refusal_that_says_why() -> None:
    async with destination(upper) as address:
        pass
    async with serving(address) as (host, _, metrics):
        end = Collect()
        host.sessions[0].open(address, end)
        async with asyncio.timeout(PATIENCE):
            lost = await end.lost
        assert isinstance(lost, StreamRefused)
        assert f"cannot connect to {address}" in str(lost)
        assert 'tower_agent_denied_total{reason="dial_failed"} 1.0' in metrics.render().decode()


async def test_a_destination_is_dialled_by_its_name_where_that_was_announced() -> None:
    async with destination(upper) as address:
        name = address.replace("127.0.0.1", "localhost")
        async with serving(name) as (host, _, _):
            end = Collect()
            channel = host.sessions[0].open(name, end)
            channel.write(b"by name")
            channel.write_eof()
            async with asyncio.timeout(PATIENCE):
                while bytes(end.data) != b"BY NAME":
                    await asyncio.sleep(0.01)
    async with serving(name) as (host, _, _):
        end = Collect()
        host.sessions[0].open(name, end)
        async with asyncio.timeout(PATIENCE):
            assert "cannot connect to localhost" in str(await end.lost)


async def test_a_host_that_goes_while_its_destination_is_dialled_leaves_nothing_open() -> None:
    async with destination(upper) as address, serving(address) as (host, channels, metrics):
        for _ in range(5):
            host.sessions[0].open(address, Collect())
        await host.sessions[0].request("ping")  # the opens have arrived
        host.links[0].abort("gone")
        async with asyncio.timeout(PATIENCE):
            while channels._splices or 'streams{service="kubernetes"} 0.0' not in metrics.render().decode():
                await asyncio.sleep(0.01)


async def test_a_destination_that_does_not_read_stops_its_host_and_nobody_else() -> None:
    go_on = asyncio.Event()

    async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readexactly(1)
        if first == b"s":
            await go_on.wait()
        while data := await reader.read(1 << 20):
            writer.write(len(data).to_bytes(4, "big"))

    async with destination(stuck) as address, serving(address) as (host, _, _metrics):
        slow, quick = Collect(), Collect()
        first = host.sessions[0].open(address, slow)
        async with asyncio.timeout(PATIENCE):
            await slow.accepted.wait()
            first.write(b"s")
            sent = 0
            while sent < 64 << 20 and slow.writable.is_set():
                first.write(bytes(1 << 18))
                sent += 1 << 18
                await asyncio.sleep(0)
                if not slow.writable.is_set():  # full: is it still, when everything has been moved that can be?
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(slow.writable.wait(), 0.3)
            assert sent < 64 << 20
            second = host.sessions[0].open(address, quick)
            await quick.accepted.wait()
            second.write(b"q" + bytes(1000))
            while sum(int.from_bytes(quick.data[at : at + 4], "big") for at in range(0, len(quick.data), 4)) < 1000:
                await asyncio.sleep(0.01)
            go_on.set()
            first.write_eof()
            await slow.eof.wait()
        assert sum(int.from_bytes(slow.data[at : at + 4], "big") for at in range(0, len(slow.data), 4)) == sent
        second.close()


async def test_the_second_destination_is_the_one_that_was_declared() -> None:
    async with destination(upper) as address, serving("127.0.0.1:6443") as (host, channels, _):
        channels.announce(replace(Shipment("127.0.0.1:6443", "", b"", b"", b"", "t"), kubesphere=address))
        end = Collect()
        channel = host.sessions[0].open(address, end)
        async with asyncio.timeout(PATIENCE):
            await end.accepted.wait()
            channel.write(b"console")
            channel.write_eof()
            await end.eof.wait()
        assert bytes(end.data) == b"CONSOLE"
