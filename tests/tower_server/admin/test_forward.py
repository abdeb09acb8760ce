"""Forwarding by WebSocket: raw bytes both ways with half-close, and refusals before the upgrade."""

import asyncio
import json

import pytest
from websockets.asyncio.client import unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from protocol.constants import Code
from tests.tower_server.kit import Echo, joined, running
from tests.waiting import until

pytestmark = pytest.mark.asyncio


def connect(server, path, **headers):
    return unix_connect(
        str(server.config.admin_socket), f"ws://localhost{path}", compression=None, additional_headers=headers
    )


async def test_bytes_and_half_close_pass_both_ways(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        agent.raw = lambda incoming: incoming.accept(Echo())
        async with asyncio.timeout(30), connect(server, "/v1/clusters/edge-1/forward/grafana") as socket:
            sent = bytes(range(256)) * 4000

            async def send():
                for start in range(0, len(sent), 60_000):
                    await socket.send(sent[start : start + 60_000])
                await socket.send("")

            sending = asyncio.ensure_future(send())
            received = b""
            while (message := await socket.recv()) != "":
                received += message
            await sending
            assert received == sent
        await until(lambda: [s.service for s in agent.tunnel.streams()] == ["tower.control"])
        (incoming,) = [each for each in agent.incoming if each.service == "grafana"]
        assert incoming.caller == "admin"


async def test_a_person_who_leaves_ends_the_stream(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        agent.raw = lambda incoming: incoming.accept(Echo())
        async with connect(server, "/v1/clusters/edge-1/forward/grafana") as socket:
            await socket.send(b"x")
            assert await socket.recv() == b"x"
        await until(lambda: [s.service for s in agent.tunnel.streams()] == ["tower.control"])


async def test_a_lost_tunnel_ends_the_forward(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        agent.raw = lambda incoming: incoming.accept(Echo())
        async with connect(server, "/v1/clusters/edge-1/forward/grafana") as socket:
            await socket.send(b"x")
            await socket.recv()
            await agent.close()
            async with asyncio.timeout(30):
                with pytest.raises(ConnectionClosed):
                    await socket.recv()


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/clusters/edge-1/forward/secret", 404, "TWR226"),
        ("/v1/clusters/nowhere/forward/x", 404, "TWR603"),
        ("/v1/clusters/edge-1/forward/tower.control", 400, "TWR605"),
        ("/v1/clusters/edge-1", 404, "TWR612"),
    ],
)
async def test_a_refusal_comes_before_the_upgrade(tmp_path, caplog, path, status, code):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        agent.raw = lambda incoming: incoming.refuse(Code.UNKNOWN_SERVICE, f"no service {incoming.service}")
        with pytest.raises(InvalidStatus) as caught:
            async with connect(server, path):
                pass
        assert caught.value.response.status_code == status
        assert json.loads(caught.value.response.body)["code"] == code
        assert [line.getMessage() for line in caplog.records if line.levelname == "ERROR"] == [], "nothing is broken"


async def test_a_web_page_may_not_forward(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1"):
        with pytest.raises(InvalidStatus) as caught:
            async with connect(server, "/v1/clusters/edge-1/forward/grafana", Origin="https://evil.example"):
                pass
        assert caught.value.response.status_code == 403
