"""The server's own certificate: names, rotation without a restart, and an operator's own files."""

import asyncio
import datetime as dt
import hashlib
import ssl
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from certs.ca import Authority
from certs.keys import generate_key, key_to_pem
from daemon.faults import TowerError
from tower_server.servercert import FileCertificate, ServerCertificate, own_names

NOW = time.time()
AUTHORITY = Authority.create("hq", at=NOW)


async def shown(context, name):
    """The certificate that a client is shown under a name, verified against the tower's root."""
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    try:
        trust = ssl.create_default_context(cadata=AUTHORITY.bundle.root_pem.decode())
        host, port = server.sockets[0].getsockname()
        _, writer = await asyncio.open_connection(host, port, ssl=trust, server_hostname=name)
        found = x509.load_der_x509_certificate(writer.get_extra_info("ssl_object").getpeercert(True))
        writer.transport.abort()
        return found
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.asyncio
async def test_it_answers_to_its_own_names_and_to_every_members():
    certificate = ServerCertificate(AUTHORITY, names=["tower.example.com", "10.0.0.1"], at=NOW)
    for name in ("tower.example.com", "10.0.0.1", "edge-1.members.tower", "edge-2.members.tower"):
        await shown(certificate.answer_context, name)
    with pytest.raises(ssl.SSLCertVerificationError):
        await shown(certificate.tunnel_context, "elsewhere.example.com")


@pytest.mark.asyncio
async def test_a_renewed_certificate_serves_the_next_handshake():
    certificate = ServerCertificate(AUTHORITY, names=["tower.example.com"], at=NOW)
    before = await shown(certificate.tunnel_context, "tower.example.com")
    assert NOW + 15 * 86400 < certificate.renew_at < NOW + 25 * 86400
    certificate.renew(at=NOW)
    after = await shown(certificate.tunnel_context, "tower.example.com")
    assert after.serial_number == certificate.issued.serial != before.serial_number
    assert certificate.credentials.chain[0] == certificate.issued.chain_der[0]


def pair(folder, *, name="tower.example.com"):
    key = generate_key()
    issued = AUTHORITY.issue_server("x", [name], public_key=key.public_key(), at=NOW)
    (folder / "cert.pem").write_bytes(issued.chain_pem)
    (folder / "key.pem").write_bytes(key_to_pem(key))
    return issued


@pytest.mark.asyncio
async def test_an_operators_files_are_followed_and_a_bad_pair_leaves_the_old(tmp_path):
    first = pair(tmp_path)
    certificate = FileCertificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    assert (await shown(certificate.context, "tower.example.com")).serial_number == first.serial
    assert not certificate.reload()
    second = pair(tmp_path)
    assert certificate.reload()
    assert (await shown(certificate.context, "tower.example.com")).serial_number == second.serial
    (tmp_path / "key.pem").write_bytes(key_to_pem(generate_key()))
    with pytest.raises(TowerError) as caught:
        certificate.reload()
    assert caught.value.code == "TWR104"
    assert "key.pem" in caught.value.message
    assert (await shown(certificate.context, "tower.example.com")).serial_number == second.serial


def test_a_certificate_of_a_published_key_is_refused(tmp_path, monkeypatch):
    pair(tmp_path)
    key = x509.load_pem_x509_certificates((tmp_path / "cert.pem").read_bytes())[-1].public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    monkeypatch.setattr("certs.published.GO_TOWER_CA", hashlib.sha256(spki).hexdigest())
    with pytest.raises(TowerError, match="private key is published") as caught:
        FileCertificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    assert caught.value.code == "TWR104"


def test_missing_files_are_named(tmp_path):
    with pytest.raises(TowerError, match=r"nowhere\.pem"):
        FileCertificate(tmp_path / "nowhere.pem", tmp_path / "key.pem")


def test_names_that_cannot_stand_in_a_certificate_are_left_out(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "bad_name")
    assert own_names("tower.example.com", "", "0.0.0.0") == [
        "tower.example.com", "localhost", "127.0.0.1", "::1",
    ]  # fmt: skip


def test_the_lifetime_is_bounded():
    certificate = ServerCertificate(AUTHORITY, names=[], at=NOW)
    ends = certificate.issued.certificate.not_valid_after_utc
    assert ends - dt.datetime.fromtimestamp(NOW, dt.UTC) <= dt.timedelta(days=31)


def test_a_further_address_is_carried_from_the_next_renewal_on_and_their_number_is_bounded() -> None:
    from certs.verify import certificate_names
    from tower_server.servercert import MAX_FURTHER_NAMES

    made = ServerCertificate(AUTHORITY, names=["tower.example.com"], at=NOW)
    assert made.name_also(["203.0.113.7", "tower.example.com"])
    assert not made.name_also(["203.0.113.7"])
    made.renew(at=NOW)
    assert {"203.0.113.7", "tower.example.com", "*.members.tower"} <= certificate_names(made.issued.chain_der)
    for number in range(MAX_FURTHER_NAMES):
        made.name_also([f"10.0.0.{number}"])
    made.renew(at=NOW)
    carried = certificate_names(made.issued.chain_der)
    assert {"tower.example.com", "*.members.tower", "10.0.0.0"} <= carried
    assert "203.0.113.7" not in carried
