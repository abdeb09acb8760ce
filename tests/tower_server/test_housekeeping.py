"""What happens every few seconds: certificates are renewed in time, a broken one is not taken, figures follow."""

import asyncio
import ssl
import time

import pytest
import structlog

from certs.ca import Authority
from certs.keys import key_to_pem
from daemon.faults import TowerError
from protocol.constants import Code
from tests.tower_server.kit import Running, anonymous, joined, running
from tests.waiting import until
from tower_server.servercert import ServerCertificate

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tower_server.housekeeping.EVERY", 0.02)


async def presented(server: Running) -> bytes:
    """The certificate that the tunnel port shows."""
    _, writer = await asyncio.open_connection(
        "127.0.0.1", server.tunnel_port, ssl=anonymous(server), server_hostname="localhost"
    )
    try:
        return writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.transport.abort()


@pytest.mark.slow
async def test_the_servers_certificate_is_renewed_once_its_time_has_come(tmp_path, monkeypatch):
    async with running(tmp_path) as server:
        before = await presented(server)
        monkeypatch.setattr(ServerCertificate, "renew_at", 0.0)
        async with asyncio.timeout(30):
            while await presented(server) == before:
                await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_a_certificate_file_that_breaks_leaves_the_one_before_in_force_and_says_so(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    own = ServerCertificate(Authority.create("hq", at=time.time()), names=["localhost"], at=time.time())
    cert.write_bytes(own.issued.chain_pem)
    key.write_bytes(key_to_pem(own.key))
    with structlog.testing.capture_logs() as lines:
        async with running(tmp_path, tls={"cert": str(cert), "key": str(key)}) as server:
            cert.write_text("half a file")
            await until(lambda: [line for line in lines if line["event"] == "tunnel-certificate-unusable"])
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            _, writer = await asyncio.open_connection("127.0.0.1", server.tunnel_port, ssl=context)
            assert writer.get_extra_info("ssl_object").getpeercert(binary_form=True) == own.issued.chain_der[0]
            writer.transport.abort()
    (said, *_) = (line for line in lines if line["event"] == "tunnel-certificate-unusable")
    assert said["code"] == "TWR104"
    assert str(cert) in said["text"]


@pytest.mark.slow
async def test_the_figures_follow_what_is(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1"):
        metrics = server.services.metrics
        await until(lambda: b'tower_clusters{state="Connected"} 1.0' in metrics.render())
        assert b'tower_ports{kind="caller",state="listening"} 1.0' in metrics.render()


async def test_what_needs_no_store_goes_on_while_it_is_away(tmp_path, monkeypatch):
    async def away(*_what: object, **_more: object) -> None:
        raise TowerError("TWR114", "no answer")

    monkeypatch.setattr("tower_server.housekeeping.TIDY_EVERY", 0.0)
    async with running(tmp_path) as server:
        metrics, store = server.services.metrics, server.services.store
        async with joined(server, "edge-1"):
            await until(lambda: b'tower_clusters{state="Connected"} 1.0' in metrics.render())
            with monkeypatch.context() as patch:
                for verb in ("get", "list", "update"):
                    patch.setattr(store, verb, away)
                server.services.registry.close_all(Code.DEAD_PEER, "gone")
                await until(lambda: b'tower_clusters{state="TunnelDown"} 1.0' in metrics.render())
