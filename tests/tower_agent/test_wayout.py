"""Which authorities, which proxy, and what a plain address needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.faults import TowerError
from tests.protocol.aio.test_proxydial import ConnectProxy, serving
from tests.tower_agent.conftest import MakeMember
from tests.tower_agent.tower import new_tower, serving_tower
from tower_agent.config import AgentConfig
from tower_agent.wayout import WayOut


def test_a_hosts_entry_wins_over_the_whole(tmp_path: Path) -> None:
    config = AgentConfig(
        ca_file=tmp_path / "all.pem",
        proxy="http://all:1",
        hosts=[{"name": "west", "proxy": "http://west:2", "url": "wss://moved:8443"}],
    )
    west = WayOut.of(config, "west")
    assert west == WayOut(ca_file=tmp_path / "all.pem", proxy="http://west:2", url="wss://moved:8443")
    assert WayOut.of(config, "east").proxy == "http://all:1"
    assert WayOut.of(config).proxy == "http://all:1"


def test_the_tunnel_is_verified_and_the_enrolment_need_not_be() -> None:
    bundle = new_tower().bundle
    tunnel = WayOut().tunnel("wss://tower.example.com:8443/base", bundle)
    assert (tunnel.host, tunnel.port, tunnel.path) == ("tower.example.com", 8443, "/base/v1/tunnel")
    assert tunnel.ssl_context is not None
    assert tunnel.ssl_context.check_hostname
    assert f"sha256:{bundle.fingerprint[:16]}" in tunnel.expected_ca
    enrolment = WayOut().enrolment("https://tower.example.com:8443")
    assert enrolment.ssl_context is not None
    assert not enrolment.ssl_context.check_hostname


@pytest.mark.parametrize(
    ("way", "url", "code", "told"),
    [
        (WayOut(), "ws://tower:80", "TWR227", "without TLS"),
        (WayOut(), "ftp://tower", "TWR101", "wss://tower.example.com:8443"),
        (WayOut(ca_file=Path("/nonexistent.pem")), "wss://tower", "TWR104", "/nonexistent.pem"),
    ],
)
def test_what_cannot_be_dialled_is_named(way: WayOut, url: str, code: str, told: str) -> None:
    with pytest.raises(TowerError) as caught:
        way.tunnel(url, new_tower().bundle)
    assert caught.value.code == code
    assert told in caught.value.message


def test_a_plain_address_that_was_asked_for() -> None:
    target = WayOut(insecure_transport=True).tunnel("ws://tower:80", new_tower().bundle)
    assert target.ssl_context is None


@pytest.mark.asyncio
async def test_an_agent_behind_a_proxy(make_member: MakeMember) -> None:
    proxy = ConnectProxy()
    async with make_member() as member, serving_tower(new_tower()) as tower, serving(proxy) as port:
        await member.agent(tower, proxy=f"http://user:pass@127.0.0.1:{port}")
        await tower.tunnel()
        assert proxy.heads[0].startswith(f"CONNECT 127.0.0.1:{tower.port} ".encode())
