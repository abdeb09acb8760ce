"""Callers' ports: taken ones heal, the second service comes and goes, nothing is left behind."""

import asyncio
import contextlib
import socket

import pytest
import structlog.testing

from protocol import defaults
from tests.tower_server.kit import (
    Echo,
    admin,
    call,
    joined,
    raw,
    raw_kubernetes,
    running,
)
from tests.waiting import until
from tower_server.listeners import CallerPorts

pytestmark = pytest.mark.asyncio


async def test_a_port_that_is_taken_is_a_condition_and_heals(tmp_path, monkeypatch):
    monkeypatch.setattr("tower_server.listeners.RETRY_EVERY", 0.05)
    async with running(tmp_path) as server:
        await server.add("edge-1")
        port = server.port("edge-1")
        settings = {"ports": {"range": server.config.ports.range, "bind": "127.0.0.1"}}
    taken = socket.create_server(("127.0.0.1", port))
    try:
        async with running(tmp_path, **settings) as server:
            (condition,) = [
                each
                for each in (await admin(server, "GET", "/v1/clusters/edge-1")).json()["conditions"]
                if each["type"] == "PortReady"
            ]
            assert (condition["status"], condition["reason"]) == ("False", "PortUnavailable")
            assert str(port) in condition["message"]
            taken.close()
            await until(lambda: server.services.clusters.ports.of("edge-1")[0].listening)
            assert (await call(server, "edge-1")).status == 503
    finally:
        taken.close()


async def test_the_second_service_has_a_port_while_it_is_declared(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        agent.raw = lambda incoming: incoming.accept(Echo())
        ports = server.services.clusters.ports
        await agent.report(services={"kubernetes": {}, "kubesphere": {"address": "ks:80"}})
        await until(lambda: any(port.service == "kubesphere" and port.listening for port in ports.of("edge-1")))
        assert server.port("edge-1", "kubesphere") == server.port("edge-1") + 10000
        async with raw(server, "edge-1", "kubesphere") as (reader, writer):
            writer.write(b"raw bytes")
            assert await reader.readexactly(9) == b"raw bytes"
        await agent.report(services={"kubernetes": {}})
        await until(lambda: len(ports.of("edge-1")) == 1)
        assert server.port("edge-1", "kubesphere")  # kept for the day it is declared again


async def test_strangers_that_sit_at_a_raw_service_leave_room_for_kubernetes(tmp_path, monkeypatch):
    memory = {"tunnel": "1MiB", "process": "1MiB"}  # for 64 streams
    async with (
        running(tmp_path, callers={"new_per_network": 10}, memory=memory) as server,
        joined(server, "edge-1") as agent,
        contextlib.AsyncExitStack() as stack,
    ):
        agent.raw = lambda incoming: incoming.accept(Echo())
        raw_kubernetes(agent, Echo)
        await agent.report(services={"kubernetes": {}, "kubesphere": {"address": "ks:80"}})
        ports = server.services.clusters.ports
        await until(lambda: any(port.service == "kubesphere" and port.listening for port in ports.of("edge-1")))
        (port,) = (port for port in ports.of("edge-1") if port.service == "kubesphere")

        async def sit(source: str) -> bool:
            """Whether a connection is let in, where it stays and says nothing more."""
            reader, writer = await asyncio.open_connection("127.0.0.1", port.port, local_addr=(source, 0))
            stack.callback(writer.transport.abort)
            try:
                writer.write(b"hi")
                return await reader.read(2) == b"hi"
            except ConnectionResetError:
                return False

        monkeypatch.setattr(defaults, "HEAD_DEADLINE", 0.0)  # whoever sits has sat longer than that
        with structlog.testing.capture_logs() as lines:
            assert [await sit("127.0.0.2") for _ in range(12)] == [True] * 10 + [False] * 2
            assert [await sit("127.0.0.3") for _ in range(8)] == [True] * 6 + [False] * 2
        (line,) = [line for line in lines if line["event"] == "callers-refused"]
        assert (line["service"], line["text"]) == ("kubesphere", "more than 10 connections open")
        async with raw(server, "edge-1") as (reader, writer):
            writer.write(b"who lists pods")
            assert await reader.readexactly(14) == b"who lists pods"


async def test_bytes_are_counted_once_however_often_they_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("tower_server.listeners.RETRY_EVERY", 0.01)
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        agent.raw = lambda incoming: incoming.accept(Echo())
        await agent.report(services={"kubernetes": {}, "kubesphere": {"address": "ks:80"}})
        await until(lambda: [port.listening for port in server.services.clusters.ports.of("edge-1")] == [True, True])

        def carried() -> list[float]:
            lines = server.services.metrics.render().decode().splitlines()
            return [float(line.split()[1]) for line in lines if line.startswith("tower_stream_bytes_total{")]

        async with raw(server, "edge-1", "kubesphere") as (reader, writer):
            for data, total in ((b"raw bytes", 9.0), (b"more", 13.0)):
                writer.write(data)
                assert await reader.readexactly(len(data)) == data
                await until(lambda total=total: carried() == [total, total])
        await until(lambda: not server.services.clusters.ports.connections)
        assert carried() == [13.0, 13.0]


async def test_a_port_that_was_handed_in_and_is_no_clusters_refuses_callers(tmp_path):
    unclaimed = socket.create_server(("127.0.0.1", 0))
    port = unclaimed.getsockname()[1]
    inherited = {f"port-{port}": [unclaimed]}
    nothing = {"answerer": None, "open_duration": None, "throttled": None}
    ports = CallerPorts(bind="127.0.0.1", answers=True, per_network=1, raw=1, inherited=inherited, **nothing)
    with structlog.testing.capture_logs() as lines:
        ports.drop_unclaimed()
    assert [(line["event"], line["name"]) for line in lines] == [("inherited-port-unclaimed", f"port-{port}")]
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_service_that_is_declared_while_the_server_ends_opens_no_port(tmp_path):
    async with running(tmp_path) as server:
        await server.add("edge-1")
        ports, member = server.server._parts.ports, server.member("edge-1")
        (port,) = ports.of("edge-1")
        ports.close("the server stops")
        assert not (await ports.add(member, "kubesphere", port.port + 1)).listening
        assert await port.listen()  # nor does one that was closed come back
        assert not port.listening
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port.port + 1)


async def test_a_server_that_stops_does_not_say_that_its_ports_listen(tmp_path, monkeypatch):
    monkeypatch.setattr("tower_server.listeners.RETRY_EVERY", 0.01)

    class Looked:
        listening, turns = True, 0

        @property
        def connections(self):
            self.turns += 1
            return ()

        def drain(self):
            pass

        def close(self, why):
            pass

    async with running(tmp_path) as server:
        await server.add("edge-1")
        ports, looked = server.server._parts.ports, Looked()
        ports._ports["looked", "at"] = looked
        ports.drain()
        ports.close("the server stops")
        before = looked.turns
        with structlog.testing.capture_logs() as said:
            await until(lambda: looked.turns > before + 2)
        del ports._ports["looked", "at"]
    assert [line for line in said if line["event"] == "port-listening"] == []


@pytest.mark.slow
async def test_a_caller_that_vanishes_is_noticed_though_nothing_is_sent(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        raw_kubernetes(agent, Echo)
        port = server.services.clusters.ports.of("edge-1")[0]
        async with raw(server, "edge-1"):
            await until(lambda: port.connections)
            (connection,) = port.connections
            accepted = connection.transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_a_thousand_connections_leave_nothing_behind(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        raw_kubernetes(agent, Echo)
        port = server.services.clusters.ports.of("edge-1")[0]

        async def one():
            async with raw(server, "edge-1") as (reader, writer):
                writer.write(b"hi")
                await reader.readexactly(2)

        for _ in range(20):
            await asyncio.gather(*(one() for _ in range(50)))
        await until(lambda: not port.connections)
        await until(lambda: all(stream.service == "tower.control" for stream in agent.tunnel.streams()))
        rendered = server.services.metrics.render()
        assert b'tower_streams{member_cluster="edge-1",service="kubernetes"} 0.0' in rendered


async def test_a_network_has_a_bounded_number_of_new_connections_at_a_port(tmp_path, monkeypatch):
    async with running(tmp_path, callers={"new_per_network": 5}) as server, joined(server, "edge-1") as agent:
        raw_kubernetes(agent, Echo)
        port = server.services.clusters.ports.of("edge-1")[0]

        async def kept(source: str) -> asyncio.StreamWriter | None:
            """A connection that is let in; None where it is closed without a byte."""
            reader, writer = await asyncio.open_connection("127.0.0.1", port.port, local_addr=(source, 0))
            stack.callback(lambda: writer.transport.abort())
            try:
                writer.write(b"hi")
                return writer if await reader.read(2) == b"hi" else None
            except ConnectionResetError:
                return None

        with contextlib.ExitStack() as stack:
            with structlog.testing.capture_logs() as lines:
                held = [await kept("127.0.0.1") for _ in range(5)]
                assert all(held)
                assert [await kept("127.0.0.1") for _ in range(4)] == [None] * 4
            (line,) = [line for line in lines if line["event"] == "callers-refused"]
            assert (line["cluster"], line["network"]) == ("edge-1", "127.0.0.1")
            assert b'tower_throttled_total{limit="callers"} 4.0' in server.services.metrics.render()
            assert await kept("127.0.0.9"), "others are not kept out"
            held[0].transport.abort()
            await until(lambda: len(port.connections) == 5)
            assert await kept("127.0.0.1"), "who leaves makes room"
            assert await kept("127.0.0.1") is None
            monkeypatch.setattr(defaults, "HEAD_DEADLINE", 0.0)
            assert await kept("127.0.0.1"), "who has stayed that long has been recognised, and does not count"
        await until(lambda: not port.connections)
        assert not port._new
        assert not port._new_of
