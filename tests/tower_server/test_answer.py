"""The server's own answers to callers, and what it does with those who do not speak TLS."""

import asyncio

import pytest

from protocol.constants import Code
from tests.tower_server.kit import (
    call,
    calling,
    exchange,
    joined,
    raw,
    running,
)
from tests.waiting import until

pytestmark = pytest.mark.asyncio


async def test_head_requests_get_no_body_and_slow_ones_a_408(tmp_path, monkeypatch):
    async with running(tmp_path) as server:
        await server.add("edge-1")
        answer = await call(server, "edge-1", method="HEAD")
        assert (answer.status, answer.body) == (503, b"")
        assert int(answer.headers["content-length"]) > 0
        server.services.clusters.ports.answerer._deadline = 0.2
        async with calling(server, "edge-1") as (reader, writer):
            assert (await exchange(reader, writer, b"GET / HTTP/1.1\r\nHost:")).status == 408


async def test_a_large_head_is_431_and_a_large_body_does_not_cut_the_answer(tmp_path):
    async with running(tmp_path) as server:
        await server.add("edge-1")
        async with calling(server, "edge-1") as (reader, writer):
            assert (await exchange(reader, writer, b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000)).status == 431
        async with calling(server, "edge-1") as (reader, writer):
            request = b"POST / HTTP/1.1\r\nContent-Length: 500000\r\n\r\n" + b"z" * 500_000
            assert (await exchange(reader, writer, request)).status == 503


@pytest.mark.parametrize(
    ("sent", "answer"),
    [(b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.0 400 "), (b"\x00\x01garbage" * 10, b""), (b"\x16\x03\x01\x02", None)],
)
async def test_what_is_not_tls_gets_a_clear_end_and_touches_nobody(tmp_path, sent, answer):
    async with running(tmp_path) as server, joined(server, "edge-2"):
        await server.add("edge-1")
        async with raw(server, "edge-1") as (reader, writer):
            writer.write(sent)
            if answer is None:
                writer.write_eof()  # half a hello, and nothing more
            async with asyncio.timeout(30):
                try:
                    said = await reader.read(-1)
                except ConnectionResetError:
                    said = b""
        assert answer is None or said.startswith(answer)
        assert (await call(server, "edge-2")).status == 200
        assert b'tower_caller_tls_failures_total{member_cluster="edge-1"} 1.0' in server.services.metrics.render()


async def test_close_means_no_answer(tmp_path):
    async with running(tmp_path, callers={"no_tunnel_answer": "close"}) as server:
        await server.add("edge-1")
        async with raw(server, "edge-1") as (reader, writer):
            writer.write(b"x")
            assert await reader.read(-1) == b""


async def test_a_passthrough_members_port_just_closes(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await agent.report(services={"kubernetes": {"mode": "passthrough"}})
        await until(lambda: server.member("edge-1").passthrough)
        agent.refusal = (Code.DIAL_FAILED, "refused")
        async with raw(server, "edge-1") as (reader, writer):
            writer.write(b"x")
            assert await reader.read(-1) == b""
