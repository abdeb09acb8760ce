"""An agent's connection that is carried to the server whose tunnel it comes for: bytes, bounds, and both ends' ends."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from protocol.constants import Code
from protocol.errors import StreamRefused
from tests.tower_server.replicas import kit
from tests.tower_server.replicas.kit import Caller, Host, serving
from tests.waiting import PATIENCE, until
from tower_server.replicas import port as port_module
from tower_server.replicas.carrying import MAX_CARRIED, AgentEnd
from tower_server.replicas.replicas import Replicas

pytestmark = pytest.mark.asyncio
REQUEST = b"GET /v1/tunnel HTTP/1.1\r\nTower-Resume: abc\r\n\r\n"


class Answering:
    """The owner's link: sends everything back, or keeps it."""

    def __init__(self, remote: str) -> None:
        self.remote, self.data, self.over, self.full = remote, bytearray(), False, 0
        self.silent = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def received(self, data: memoryview) -> None:
        self.data += data
        if not self.silent:
            self.transport.write(bytes(data))

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.full += 1
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def connection_lost(self, _exc: Exception | None) -> None:
        self.over = True


class Owner(Host):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[Answering] = []

    def link(self, remote: str) -> Answering:
        self.links.append(Answering(remote))
        return self.links[-1]


class Arrives(asyncio.Protocol):
    """What the tunnel port of the server that the agent came to does with its connection."""

    def __init__(self, came: Came) -> None:
        self._came = came

    def connection_made(self, transport: Any) -> None:
        transport.pause_reading()
        self._came.transports.append(transport)
        end = AgentEnd(transport, self._came.held, "192.0.2.1:5", self._came.answers.append)
        end.begin(self._came.caller.link, "abc", REQUEST, start=self._came.caller.start)


class Came:
    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.held: set[AgentEnd] = set()
        self.answers: list[bool] = []
        self.transports: list[Any] = []


@asynccontextmanager
async def carried(host: Owner) -> AsyncIterator[tuple[Came, asyncio.StreamReader, asyncio.StreamWriter]]:
    async with serving(host) as port:
        came = Came(Caller(port))
        server = await asyncio.get_running_loop().create_server(lambda: Arrives(came), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            await until(lambda: came.answers)
            yield came, reader, writer
        finally:
            writer.transport.abort()
            for transport in came.transports:
                transport.abort()
            server.close()
            await server.wait_closed()
            await until(lambda: not (came.held or port.carried or came.caller.link.passing))


async def test_the_request_and_all_that_follows_reach_the_owner_and_its_bytes_the_agent() -> None:
    host, sent = Owner(), random.Random(1).randbytes(3_000_000)
    async with carried(host) as (came, reader, writer):
        assert came.answers == [True]
        assert host.links[0].remote == "192.0.2.1:5"
        assert await reader.readexactly(len(REQUEST)) == REQUEST
        writer.write(sent)
        async with asyncio.timeout(PATIENCE):
            assert await reader.readexactly(len(sent)) == sent
            await writer.drain()
    await until(lambda: host.links[0].over)


async def test_an_agent_that_does_not_read_stops_the_owner_and_costs_no_memory_without_bound() -> None:
    host = Owner()
    async with carried(host) as (_came, reader, _writer):
        link = host.links[0]
        link.silent = True
        piece, most = bytes(65536), 400
        for _ in range(most):
            link.transport.write(piece)
            await asyncio.sleep(0)
        await until(lambda: link.full)
        async with asyncio.timeout(PATIENCE):
            await reader.readexactly(len(REQUEST) + most * len(piece))


async def test_the_end_of_either_ends_the_other() -> None:
    host = Owner()
    async with carried(host) as (_came, reader, _writer):
        await reader.readexactly(len(REQUEST))
        host.links[0].transport.abort()
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
    async with carried(host) as (_came, reader, writer):
        await reader.readexactly(len(REQUEST))
        writer.transport.abort()
        await until(lambda: host.links[1].over)


async def test_an_owner_that_has_too_many_leaves_the_agent_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_module, "MAX_CARRIED", 0)
    host = Owner()
    async with carried(host) as (came, _reader, _writer):
        assert came.answers == [False]
        assert host.links == []
        assert not came.transports[0].is_closing(), "it is served here"


async def test_an_owner_that_cannot_be_reached_or_refuses_leaves_it_there_too() -> None:
    host = Owner()
    async with serving(host) as port:
        caller, answers, held = Caller(port), [], set[AgentEnd]()
        port.stop()
        transport: Any = type("Gone", (), {"is_closing": lambda _self: False})()
        AgentEnd(transport, held, "192.0.2.1:5", answers.append).begin(caller.link, "abc", REQUEST, start=caller.start)
        await until(lambda: answers == [False] and not held)
        end = AgentEnd(transport, held, "192.0.2.1:5", answers.append)
        end.lost(StreamRefused(Code.PROTOCOL, "a server of before"))
        assert answers == [False, False]


async def test_only_an_owner_that_is_there_is_asked_and_nobody_beyond_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(AgentEnd, "begin", lambda _end, link, tunnel, _request, *, start: asked.append(tunnel))
    nothing: Any = SimpleNamespace(members={})
    replicas = Replicas(authority=kit.AUTHORITY, name="a", registry=nothing, clusters=nothing, start=lambda *_: None)
    owner: Any = SimpleNamespace(up=True, peer=SimpleNamespace(name="b", instance="0123456789abcdef"))
    replicas.links["b"] = owner
    transport: Any = SimpleNamespace()

    def carry(tunnel: str) -> bool:
        return replicas.carry(tunnel, REQUEST, transport, "192.0.2.1:5", lambda _taken: None)

    assert carry("01234567aabbccddeeff")
    assert not carry(replicas.tag + "aabbccddeeff"), "its own"
    assert not carry("ffffffffaabbccddeeff"), "nobody's"
    assert not carry("")
    owner.up = False
    assert not carry("01234567aabbccddeeff")
    owner.up = True
    replicas.carrying.update(object() for _ in range(MAX_CARRIED))  # type: ignore[misc]
    assert not carry("01234567aabbccddeeff")
    assert asked == ["01234567aabbccddeeff"]
