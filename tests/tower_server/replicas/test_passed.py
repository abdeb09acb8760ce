"""Callers whom another server passes on, at the server that holds their tunnel or does not."""

from __future__ import annotations

import asyncio
import json

import pytest
import structlog

from protocol.constants import CONTROL_SERVICE, Code
from tests.tower_server.replicas.kit import Host, certificate, said, serving
from tests.waiting import until
from tower_server.replicas.wire import Passing

pytestmark = pytest.mark.asyncio
HEAD = Passing("edge", "kubernetes", "192.0.2.1:5", "c-1")


@pytest.mark.parametrize("cluster", ["edge", "nowhere"])
async def test_a_server_without_a_tunnel_passes_nothing_further_on(cluster):
    host = Host()
    host.tunnel = None
    async with serving(host) as port:
        head = Passing(cluster, "kubernetes", "192.0.2.1:5", "c-1")
        answer = json.loads(await said(port, certificate("other").calling, head.line()))
        assert (answer["type"], answer["code"]) == ("refused", Code.DRAINING)
        assert f"no tunnel of cluster {cluster}" in answer["text"]


async def test_who_has_a_replicas_key_is_no_host_to_an_agent():
    host = Host()
    async with serving(host) as port:
        head = Passing("edge", CONTROL_SERVICE, "192.0.2.1:5", "c-1")
        answer = json.loads(await said(port, certificate("other").calling, head.line() + b"no line of JSON\n"))
        assert (answer["type"], answer["code"]) == ("refused", Code.PROTOCOL)
        assert not host.tunnel.opened, "what is said there could end the tunnel, or keep its agent from renewing"


async def test_one_line_of_the_audit_names_the_caller_and_by_whom_it_came():
    host = Host()
    with structlog.testing.capture_logs() as lines:
        async with serving(host) as port:
            reader, writer = await asyncio.open_connection(
                *port.address, ssl=certificate("other").calling, server_hostname="owner"
            )
            writer.write(HEAD.line() + b"abc")
            await until(lambda: host.tunnel.far)
            host.tunnel.far[0].transport.write(b"answer")
            assert await reader.readexactly(len(b'{"type":"accepted"}\nanswer'))
            host.tunnel.far[0].transport.reset(Code.INTERNAL, "the member fell over")
            await until(lambda: not port.passed)
            writer.transport.abort()
    (line,) = [each for each in lines if each["event"] == "passed"]
    assert (line["caller"], line["connection"], line["via"]) == ("192.0.2.1:5", "c-1", "other")
    assert (line["bytes_up"], line["bytes_down"]) == (3, 6)
    assert "the member fell over" in line["outcome"]
