"""Strangers at the tunnel port: what they may cost."""

import asyncio

import pytest
import structlog.testing

from protocol.constants import Code
from protocol.errors import HandshakeRejected
from tests.tower_server.kit import running
from tests.waiting import until

pytestmark = pytest.mark.asyncio


async def test_strangers_do_not_write_the_log_full(tmp_path, monkeypatch):
    async def knock(source: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.tunnel_port, local_addr=(source, 0))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await reader.read()
        writer.close()

    monkeypatch.setattr("tower_server.gate.REFUSAL_LINES_RATE", 0.001)
    monkeypatch.setattr("tower_server.gate.REFUSAL_LINES_BURST", 20)
    async with running(tmp_path) as server:
        with structlog.testing.capture_logs() as lines:
            for _ in range(30):
                await knock("127.0.0.1")
            await knock("127.0.0.9")
            await until(lambda: lines and lines[-1].get("remote", "").startswith("127.0.0.9:"))
        said = [line for line in lines if line["event"] == "tunnel-port-refused"]
        assert len(said) == 11
        assert said[-1]["more"] == 20


async def test_handshakes_beyond_the_rate_are_told_when_to_come_back_and_counted(tmp_path):
    settings = {"admission": {"handshakes_per_second": 0.5, "handshake_burst": 1}}
    async with running(tmp_path, **settings) as server:
        gate = server.server._parts.listener
        gate.admit("192.0.2.1:5")
        with pytest.raises(HandshakeRejected) as caught:
            gate.admit("192.0.2.1:6")
        assert caught.value.code == Code.BUSY
        assert caught.value.retry_after >= 1.0
        assert b'tower_throttled_total{limit="handshakes"} 1.0' in server.server._metrics.render()
