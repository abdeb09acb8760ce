"""A caller's bytes through a tunnel: both ways, half-close, back-pressure, resets, refused opens."""

import asyncio
import contextlib
import dataclasses
import json
import socket
import struct

import pytest

from daemon.log import configure
from protocol.aio.pipe import pipe
from protocol.constants import Code
from protocol.defaults import OPEN_DEADLINE
from protocol.errors import StreamRefused
from tests.tower_server.kit import (
    Agent,
    Echo,
    call,
    calling,
    exchange,
    joined,
    raw,
    raw_kubernetes,
    running,
)
from tests.waiting import until
from tower_server.listeners import CallerPort

pytestmark = pytest.mark.asyncio


async def test_bytes_pass_unchanged_both_ways_with_half_close(tmp_path):
    sent = bytes(range(256)) * 40_000  # 10 MB: more than every window and buffer on the way
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        raw_kubernetes(agent, Echo)
        async with raw(server, "edge-1") as (reader, writer):

            async def send():
                writer.write(sent)
                await writer.drain()
                writer.write_eof()

            sending = asyncio.ensure_future(send())
            async with asyncio.timeout(30):
                received = await reader.read(-1)
            await sending
        assert received == sent


@pytest.mark.slow
async def test_a_reader_that_stops_stops_its_writer_and_nobody_else(tmp_path):
    class Flood(asyncio.Protocol):
        written = 0
        transport = None

        def connection_made(self, transport):
            self.transport = transport
            self.resume_writing()

        def pause_writing(self):
            self.full = True

        def resume_writing(self):
            self.full = False
            while not self.full and not self.transport.is_closing():
                Flood.written += 65536
                self.transport.write(b"x" * 65536)

        def data_received(self, data): ...

        def eof_received(self): ...

        def connection_lost(self, exc):
            self.full = True

    async with running(tmp_path) as server, joined(server, "edge-1") as agent, joined(server, "edge-2"):
        raw_kubernetes(agent, Flood)
        sock = socket.create_connection(("127.0.0.1", server.port("edge-1")))
        sock.setblocking(False)
        try:
            last, still = -1, 0
            async with asyncio.timeout(30):
                while still < 20:
                    await asyncio.sleep(0.01)
                    still = still + 1 if Flood.written == last else 0
                    last = Flood.written
            assert Flood.written < 16 * 1024 * 1024
            assert (await call(server, "edge-2")).status == 200
        finally:
            sock.close()


async def test_the_open_carries_caller_and_connection_id_which_the_audit_line_has_too(tmp_path, capsys):
    configure(style="json")
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        async with calling(server, "edge-1") as (reader, writer):
            await exchange(reader, writer, b"GET /secret-path HTTP/1.1\r\nAuthorization: Bearer s3cret\r\n\r\n")
            mine = "{}:{}".format(*writer.get_extra_info("sockname"))
        stream = next(each for each in agent.incoming if each.caller == mine)
        await until(lambda: not any(port.connections for port in server.services.clusters.ports))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (line,) = [line for line in lines if line["event"] == "connection" and line["caller"] == mine]
    assert line["connection"] == stream.connection_id
    assert (line["cluster"], line["service"]) == ("edge-1", "kubernetes")
    assert line["bytes_up"] > 300
    assert line["bytes_down"] > 500
    assert line["seconds"] > 0
    assert line["outcome"]
    assert not [line for line in lines if "s3cret" in str(line) or "secret-path" in str(line)]


async def test_a_caller_that_is_gone_ends_its_stream(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        echoes = []
        raw_kubernetes(agent, lambda: echoes.append(Echo()) or echoes[-1])
        sock = socket.create_connection(("127.0.0.1", server.port("edge-1")))
        await until(lambda: echoes)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        async with asyncio.timeout(30):
            assert await echoes[0].lost is not None
        assert agent.closed == []


async def test_a_lost_tunnel_resets_its_callers_and_is_not_taken_for_an_end(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        raw_kubernetes(agent, Echo)
        async with raw(server, "edge-1") as (reader, writer):
            writer.write(b"x")
            assert await reader.read(1) == b"x"
            await agent.close()
            with pytest.raises(ConnectionResetError):
                async with asyncio.timeout(30):
                    await reader.read(1)


class Download(asyncio.Protocol):
    """Says its last words and ends, whatever comes."""

    SAID = bytes(range(256)) * 6000

    def connection_made(self, transport):
        transport.write(self.SAID)
        transport.close()


async def test_a_caller_that_still_speaks_when_all_was_said_gets_all_of_it(tmp_path):
    """As kubectl does, which pings: a closed socket would answer that by a reset, which eats what is unread."""
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        raw_kubernetes(agent, Download)
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", server.port("edge-1")))
            (port,) = server.services.clusters.ports.of("edge-1")
            received = bytearray()
            async with asyncio.timeout(20):
                while len(received) < len(Download.SAID):
                    await loop.sock_sendall(sock, b"still here")
                    data = await loop.sock_recv(sock, 16384)
                    assert data, "an end before all of it"
                    received += data
                assert await loop.sock_recv(sock, 1) == b""
            assert received == Download.SAID
            assert len(port.connections) == 1
        await until(lambda: not port.connections)
        assert agent.closed == []


@pytest.mark.slow
async def test_a_caller_that_does_not_go_when_all_was_said_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr("tower_server.relay.LINGER", 0.2)
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        raw_kubernetes(agent, Download)
        async with raw(server, "edge-1") as (reader, _):
            async with asyncio.timeout(20):
                assert await reader.read() == Download.SAID
            (port,) = server.services.clusters.ports.of("edge-1")
            await until(lambda: not port.connections)


async def test_new_streams_go_to_the_least_loaded_tunnel(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as one:
        two = Agent(server, one.identity)
        await two.connect()
        for agent in (one, two):
            raw_kubernetes(agent, Echo)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(6):
                _, writer = await stack.enter_async_context(raw(server, "edge-1"))
                mine = "{}:{}".format(*writer.get_extra_info("sockname"))
                await until(lambda mine=mine: any(s.caller == mine for s in one.incoming + two.incoming))
            counts = [sum(s.caller.startswith("127.") for s in agent.incoming) for agent in (one, two)]
        assert counts == [3, 3]
        await two.close()


@pytest.mark.parametrize(
    ("code", "status", "fault"),
    [
        (Code.DIAL_FAILED, 502, "TWR301"),
        (Code.DIAL_TIMEOUT, 504, "TWR303"),
        (Code.BUDGET, 429, "TWR412"),
        (Code.TOO_MANY, 429, "TWR411"),
        (Code.INTERNAL, 500, "TWR112"),
    ],
)
async def test_a_refused_open_is_a_status_that_names_it(tmp_path, code, status, fault):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        agent.refusal = (code, "10.96.0.1:443: connection refused")
        answer = await call(server, "edge-1")
        document = answer.json()
        assert (answer.status, document["kind"], document["code"]) == (status, "Status", status)
        assert "10.96.0.1:443: connection refused" in document["message"]
        assert fault in document["message"]
        assert ("retry-after" in answer.headers) == (status == 429)


async def test_a_stream_refused_by_a_draining_tunnel_goes_to_another(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as draining:
        draining.refusal = (Code.DRAINING, "the agent drains")
        other = Agent(server, draining.identity)
        await other.connect()
        other.respond = lambda _head: (200, b"from the other")
        for _ in range(4):
            answer = await call(server, "edge-1")
            assert (answer.status, answer.body) == (200, b"from the other")
        await other.close()


async def test_what_the_owner_of_a_silent_tunnel_says_reaches_a_caller_that_came_here(tmp_path, monkeypatch):
    class Way:
        asked = 0

        def start_open(self, _service, protocol, *, caller, connection_id):
            Way.asked += 1
            near, _ = pipe(protocol, Echo())
            near.cut(StreamRefused(Code.DEAD_PEER, "its agent has not answered for 2.1 s"))
            return near

    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await agent.close()
        await until(lambda: not server.member("edge-1").tunnels)
        monkeypatch.setattr(server.services.clusters.ports, "elsewhere", lambda _member: Way())
        answer = await call(server, "edge-1")
        assert answer.status == 503
        assert "TWR222" in answer.json()["message"]
        assert "its agent has not answered for 2.1 s" in answer.json()["message"]
        assert Way.asked == 1, "the owner has waited; nobody waits again"


@pytest.mark.slow
async def test_an_open_that_a_silent_tunnel_does_not_answer_goes_to_one_that_is_well(tmp_path, monkeypatch):
    for place in ("protocol.aio.tunnel.STALL_AFTER", "protocol.defaults.STALL_AFTER"):
        monkeypatch.setattr(place, 0.1)
    async with running(tmp_path) as server, joined(server, "edge-1") as well:
        well.respond = lambda _head: (200, b"from the other")
        async with raw(server, "edge-1") as (_, writer):
            mine = "{}:{}".format(*writer.get_extra_info("sockname"))
            await until(lambda: any(each.caller == mine for each in well.incoming))
            silent = Agent(server, well.identity)
            await silent.connect()
            (tunnel,) = (each for each in server.member("edge-1").tunnels if each.id == silent.tunnel.id)
            assert server.member("edge-1").pick() is tunnel  # it has no stream yet
            silent.tunnel._link._transport.pause_reading()
            answer = await call(server, "edge-1")
            assert (answer.status, answer.body) == (200, b"from the other")
            assert not [each for each in tunnel.streams() if each.connection_id], "it was given up there"
        silent.tunnel._link.abort("the test is over")
        await silent.close()


async def test_an_open_that_waits_goes_to_a_tunnel_that_comes_later(tmp_path, monkeypatch):
    for place in ("protocol.aio.tunnel.STALL_AFTER", "protocol.defaults.STALL_AFTER"):
        monkeypatch.setattr(place, 0.1)
    async with running(tmp_path) as server, joined(server, "edge-1") as silent:
        (tunnel,) = server.member("edge-1").tunnels
        silent.tunnel._link._transport.pause_reading()
        asking = asyncio.ensure_future(call(server, "edge-1"))
        await until(lambda: any(each.caller.startswith("127.0.0.1:") for each in tunnel.streams()))
        other = Agent(server, silent.identity, respond=lambda _head: (200, b"from the other"))
        await other.connect()
        async with asyncio.timeout(0.8 * OPEN_DEADLINE):
            answer = await asking
        assert (answer.status, answer.body) == (200, b"from the other")
        silent.tunnel._link.abort("the test is over")
        await other.close()


@pytest.mark.slow
async def test_a_silent_agent_is_waited_for_as_long_as_a_lost_one_and_once(tmp_path, monkeypatch):
    """kubectl asks several times in a row, and gives up a TLS handshake by itself after ten seconds."""
    monkeypatch.setattr("protocol.aio.tunnel.STALL_AFTER", 0.1)
    monkeypatch.setattr("protocol.defaults.STALL_AFTER", 0.1)
    async with running(tmp_path, callers={"hold": "500ms"}) as server, joined(server, "edge-1") as agent:
        loop = asyncio.get_running_loop()
        (tunnel,) = server.member("edge-1").tunnels
        link = agent.tunnel._link._transport
        link.pause_reading()
        began = loop.time()
        answer = await call(server, "edge-1")
        assert loop.time() - began >= 0.45
        message = answer.json()["message"]
        assert (answer.status, answer.json()["reason"]) == (503, "ServiceUnavailable")
        assert "TWR222" in message
        assert "cluster edge-1: its agent has not answered for " in message
        assert "retry-after" not in answer.headers
        assert tunnel.closed is None
        assert "its agent is silent still (TWR222)" in (await call(server, "edge-1")).json()["message"]
        link.resume_reading()
        await until(lambda: not tunnel.stalled)
        for each in ("protocol.aio.tunnel", "protocol.defaults"):
            monkeypatch.setattr(f"{each}.STALL_AFTER", 30.0)  # or a busy machine makes it silent once more
        assert (await call(server, "edge-1")).status == 200


async def test_a_way_over_another_server_is_not_taken_for_a_tunnel(tmp_path, monkeypatch):
    class Way:
        """As the way to another server is used; its owner answers late."""

        accepted = False

        def start_open(self, _service, protocol, **_about):
            one, self.far = pipe(protocol, Echo())
            self.far.get_protocol().connection_made(self.far)
            asyncio.get_running_loop().call_later(0.2, self.accept, protocol)
            return one

        def accept(self, protocol):
            self.accepted = True
            protocol.stream_accepted()

    monkeypatch.setattr("protocol.defaults.STALL_AFTER", 0.02)
    problems = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: problems.append(context))
    async with running(tmp_path) as server, joined(server, "edge-1") as one:
        other = Agent(server, one.identity)
        await other.connect()
        way = Way()
        monkeypatch.setattr(CallerPort, "way", lambda _port: way)
        async with raw(server, "edge-1") as (reader, writer):
            await until(lambda: way.accepted)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            way.far.abort()
        await other.close()
    assert not problems


@pytest.mark.slow
@pytest.mark.parametrize(("silent", "status", "fault"), [(True, 503, "TWR222"), (False, 504, "TWR303")])
async def test_an_open_that_is_not_answered_blames_the_agent_only_if_that_is_silent(
    tmp_path, monkeypatch, silent, status, fault
):
    monkeypatch.setattr("protocol.aio.tunnel.STALL_AFTER", 0.5)  # a pause of a busy machine is no silence
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        assert (await call(server, "edge-1")).status == 200
        (tunnel,) = server.member("edge-1").tunnels
        tunnel.session.limits = dataclasses.replace(tunnel.session.limits, open_deadline=1.0)
        agent.respond = None
        if silent:
            agent.tunnel._link._transport.pause_reading()
        answer = await call(server, "edge-1")
        assert (answer.status, fault in answer.json()["message"]) == (status, True), answer.body
        agent.tunnel._link.abort("the test is over")
