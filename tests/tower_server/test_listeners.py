"""Callers' ports: taken ones heal, the second service comes and goes, nothing is left behind."""

import asyncio
import socket

import pytest

from tests.tower_server.kit import (
    Echo,
    admin,
    call,
    joined,
    raw,
    raw_kubernetes,
    running,
    until,
)

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
