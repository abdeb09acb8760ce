"""Real handshakes: both ends by Python's OpenSSL in memory, and `openssl` itself over loopback."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from certs import tls
from certs.ca import Authority
from certs.errors import AuthorityError, Reason, Untrusted
from certs.generation import Issued
from certs.keys import PrivateKey, generate_key, key_to_pem
from certs.revocation import RevocationList
from certs.tls import ClientTrust

NOW = time.time()
LONG_AGO = NOW - 40 * 86400
NAME = "edge-1.members.tower"


@pytest.fixture(scope="module")
def tower() -> Authority:
    return Authority.create("hq", at=LONG_AGO)


@dataclass
class Pair:
    """A certificate and its key."""

    issued: Issued
    key: PrivateKey

    @property
    def key_pem(self) -> bytes:
        return key_to_pem(self.key)


@pytest.fixture(scope="module")
def serving(tower: Authority) -> Pair:
    key = generate_key()
    return Pair(tower.issue_serving("edge-1", public_key=key.public_key(), at=NOW), key)


def callers(tower: Authority, serving: Pair) -> ssl.SSLContext:
    return tls.callers_context(tower.bundle, chain_pem=serving.issued.chain_pem, key_pem=serving.key_pem)


def caller(tower: Authority, pair: Pair | None = None) -> ssl.SSLContext:
    context = tls.client_context(ClientTrust(ca_pem=tower.bundle.root_pem))
    if pair is not None:
        tls.load_pair(context, chain_pem=pair.issued.chain_pem, key_pem=pair.key_pem)
    return context


def shake(
    server: ssl.SSLContext,
    client: ssl.SSLContext,
    *,
    name: str = NAME,
    session: ssl.SSLSession | None = None,
    to_server: ssl.MemoryBIO | None = None,
    to_client: ssl.MemoryBIO | None = None,
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """A whole handshake in memory, and a byte each way so that TLS 1.3 alerts and tickets arrive too."""
    to_server, to_client = to_server or ssl.MemoryBIO(), to_client or ssl.MemoryBIO()
    server_end = server.wrap_bio(to_server, to_client, server_side=True)
    client_end = client.wrap_bio(to_client, to_server, server_hostname=name, session=session)
    waiting = [client_end.do_handshake, server_end.do_handshake]
    for _ in range(20):
        for step in list(waiting):
            try:
                step()
                waiting.remove(step)
            except ssl.SSLWantReadError:
                pass
    assert not waiting
    server_end.write(b"s")
    client_end.write(b"c")
    assert (client_end.read(1), server_end.read(1)) == (b"s", b"c")
    return server_end, client_end


def shown(server_end: ssl.SSLObject) -> list[bytes]:
    leaf = server_end.getpeercert(True)
    return [leaf] if leaf else []


def test_a_caller_is_known_by_its_certificate(tower: Authority, serving: Pair) -> None:
    key = generate_key()
    admin = Pair(tower.issue_client("tower:hq:admin", ["g"], public_key=key.public_key(), at=NOW), key)
    server_end, client_end = shake(callers(tower, serving), caller(tower, admin))
    assert tower.bundle.verify_client(shown(server_end), NOW).user == "tower:hq:admin"
    assert client_end.version() == "TLSv1.3"
    assert server_end.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("cut", ["caller", "server"])
def test_a_cut_does_not_pass_for_the_end_of_what_was_sent(tower: Authority, serving: Pair, cut: str) -> None:
    """Whatever the Python: an answer that ends with the connection may lack its half, where nobody said goodbye."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = shake(callers(tower, serving), caller(tower), to_server=to_server, to_client=to_client)
    reader = dict(zip(("caller", "server"), ends, strict=True))[cut]
    (to_server if cut == "caller" else to_client).write_eof()
    with pytest.raises(ssl.SSLError, match=r"(?i)eof"):
        reader.read(1)


def test_a_caller_may_show_nothing(tower: Authority, serving: Pair) -> None:
    server_end, _ = shake(callers(tower, serving), caller(tower))
    assert shown(server_end) == []


def test_a_leaf_without_its_issuer_is_enough(tower: Authority, serving: Pair) -> None:
    key = generate_key()
    issued = tower.issue_client("alice", public_key=key.public_key(), at=NOW)
    context = caller(tower)
    leaf_only = issued.chain_pem.split(b"-----END CERTIFICATE-----\n")[0] + b"-----END CERTIFICATE-----\n"
    tls.load_pair(context, chain_pem=leaf_only, key_pem=key_to_pem(key))
    server_end, _ = shake(callers(tower, serving), context)
    assert tower.bundle.verify_client(shown(server_end), NOW).user == "alice"


def wrong_kinds(tower: Authority) -> dict[str, tuple[Issued, PrivateKey, Reason]]:
    key = generate_key()
    public = key.public_key()
    return {
        "expired": (tower.issue_client("alice", public_key=public, at=LONG_AGO), key, Reason.EXPIRED),
        "future": (tower.issue_client("alice", public_key=public, at=NOW + 9999), key, Reason.NOT_YET_VALID),
        "agent": (tower.issue_agent("edge-1", "a1", public_key=public, at=NOW), key, Reason.WRONG_ROLE),
        "serving": (tower.issue_serving("edge-1", public_key=public, at=NOW), key, Reason.WRONG_ROLE),
        "server": (tower.issue_server("s1", [], public_key=public, at=NOW), key, Reason.WRONG_ROLE),
        "replica": (tower.issue_replica("r1", public_key=public, at=NOW), key, Reason.UNKNOWN_ISSUER),
        "revoked": (tower.issue_client("eve", public_key=public, at=NOW), key, Reason.REVOKED),
    }


@pytest.mark.parametrize("kind", ["expired", "future", "agent", "serving", "server", "replica", "revoked"])
def test_what_this_host_issued_gets_through_tls_to_be_refused_by_name(
    tower: Authority, serving: Pair, kind: str
) -> None:
    issued, key, reason = wrong_kinds(tower)[kind]
    server_end, _ = shake(callers(tower, serving), caller(tower, Pair(issued, key)))
    revocations = RevocationList(1, "hq", NOW, users={"eve": NOW})
    with pytest.raises(Untrusted) as caught:
        tower.bundle.verify_client(shown(server_end), NOW, revocations=revocations)
    assert caught.value.reason is reason


def test_what_another_tower_issued_ends_in_an_alert(tower: Authority, serving: Pair) -> None:
    stranger = Authority.create("hq", at=NOW)
    key = generate_key()
    foreign = Pair(stranger.issue_client("alice", public_key=key.public_key(), at=NOW), key)
    with pytest.raises(ssl.SSLError, match=r"CERTIFICATE_VERIFY_FAILED|UNKNOWN_CA"):
        shake(callers(tower, serving), caller(tower, foreign))


def replica(tower: Authority, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    key = generate_key()
    issued = tower.issue_replica(name, public_key=key.public_key(), at=NOW)
    return tls.replica_contexts(tower.inner_bundle, chain_pem=issued.chain_pem, key_pem=key_to_pem(key))


def test_two_replicas_know_each_other(tower: Authority) -> None:
    (called, _), (_, calling) = replica(tower, "r1"), replica(tower, "r2")
    server_end, client_end = shake(called, calling)
    assert tower.inner_bundle.verify_replica(shown(server_end), NOW).name == "r2"
    assert tower.inner_bundle.verify_replica(shown(client_end), NOW).name == "r1"
    assert client_end.version() == "TLSv1.3"


def test_a_replica_takes_nobody_without_a_certificate_and_none_of_another_tower(tower: Authority) -> None:
    called, calling = replica(tower, "r1")
    _, stranger = replica(Authority.create("hq", at=NOW), "r2")
    nobody = caller(tower)
    nobody.check_hostname = False
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake(called, nobody)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake(called, stranger)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake(replica(Authority.create("hq", at=NOW), "r2")[0], calling)


def test_a_cluster_cannot_stand_in_for_another(tower: Authority, serving: Pair) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"[Hh]ostname mismatch"):
        shake(callers(tower, serving), caller(tower), name="edge-2.members.tower")


def test_the_server_answers_for_any_cluster(tower: Authority) -> None:
    key = generate_key()
    issued = tower.issue_server("s1", ["*.members.tower"], public_key=key.public_key(), at=NOW)
    context = tls.server_context(chain_pem=issued.chain_pem, key_pem=key_to_pem(key))
    shake(context, caller(tower), name="edge-7.members.tower")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_ticket_is_given(tower: Authority, serving: Pair, version: ssl.TLSVersion) -> None:
    client = caller(tower)
    client.maximum_version = version
    server = callers(tower, serving)
    _, first = shake(server, client)
    assert first.session is None or not first.session.has_ticket
    if version is ssl.TLSVersion.TLSv1_3:
        _, second = shake(server, client, session=first.session)
        assert not second.session_reused


def test_a_session_that_tls_1_2_takes_up_shows_its_certificate_again(tower: Authority, serving: Pair) -> None:
    key = generate_key()
    alice = Pair(tower.issue_client("alice", public_key=key.public_key(), at=NOW), key)
    server, client = callers(tower, serving), caller(tower, alice)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    _, first = shake(server, client)
    server_end, second = shake(server, client, session=first.session)
    assert second.session_reused
    assert tower.bundle.verify_client(shown(server_end), NOW).user == "alice"


@pytest.mark.parametrize("curve", ["secp521r1", "prime256v1"])
def test_a_stranger_chooses_no_costly_group_for_the_key_exchange(tower: Authority, serving: Pair, curve: str) -> None:
    """One of 8192 bits takes a server a tenth of a second, and the stranger nothing."""
    server = tls.server_context(chain_pem=serving.issued.chain_pem, key_pem=serving.key_pem)
    client = caller(tower)
    shake(server, client)  # one that offers others first is asked again
    client.set_ecdh_curve(curve)
    if curve == tls.CURVE:
        shake(server, client)
        return
    with pytest.raises(ssl.SSLError, match="NO_SUITABLE_KEY_SHARE"):
        shake(server, client)


@pytest.mark.parametrize("side", [ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT])
def test_no_peer_makes_up_a_group(side: ssl._SSLMethod) -> None:
    assert not [each["name"] for each in tls.hardened(side).get_ciphers() if each["name"].startswith("DHE-")]


def test_old_versions_are_refused(tower: Authority, serving: Pair) -> None:
    client = caller(tower)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
    client.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError, match=r"PROTOCOL|VERSION|protocol"):
        shake(callers(tower, serving), client)


def test_a_renewed_certificate_is_used_from_the_next_handshake_on(tower: Authority, serving: Pair) -> None:
    server = callers(tower, serving)
    _, before = shake(server, caller(tower))
    key = generate_key()
    renewed = tower.issue_serving("edge-1", public_key=key.public_key(), at=NOW)
    tls.load_pair(server, chain_pem=renewed.chain_pem, key_pem=key_to_pem(key))
    _, after = shake(server, caller(tower))
    assert before.getpeercert(True) == serving.issued.chain_der[0]
    assert after.getpeercert(True) == renewed.chain_der[0]


def test_a_key_of_another_pair_or_with_a_password_is_refused(serving: Pair) -> None:
    with pytest.raises(AuthorityError, match=r"cannot be used.*of one pair"):
        tls.server_context(chain_pem=serving.issued.chain_pem, key_pem=key_to_pem(generate_key()))
    with pytest.raises(AuthorityError, match=r"cannot be used"):
        tls.server_context(chain_pem=b"", key_pem=serving.key_pem)
    locked = serving.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))
    with pytest.raises(AuthorityError, match=r"cannot be used"):
        tls.server_context(chain_pem=serving.issued.chain_pem, key_pem=locked)


def test_no_key_stays_behind_in_a_descriptor(tower: Authority, serving: Pair) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    callers(tower, serving)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_client_trusts_what_it_was_told_and_nothing_else(tower: Authority, serving: Pair, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(tower.bundle.root_pem)
    shake(callers(tower, serving), tls.client_context(ClientTrust(ca_file=str(file))))
    stranger = Authority.create("hq", at=NOW)
    for trust in (ClientTrust(system=True), ClientTrust(ca_pem=stranger.bundle.root_pem)):
        with pytest.raises(ssl.SSLCertVerificationError, match=r"self-signed|unable to get"):
            shake(callers(tower, serving), tls.client_context(trust))


def test_unusable_trust_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    for trust, says in (
        (ClientTrust(), "no certificate authority is trusted"),
        (ClientTrust(ca_file=str(file)), r"ca\.pem cannot be read"),
        (ClientTrust(ca_pem=b"x"), "the CA that was given cannot be read"),
    ):
        with pytest.raises(AuthorityError, match=says):
            tls.client_context(trust)
    file.write_text("nonsense")
    with pytest.raises(AuthorityError, match=r"ca\.pem cannot be read"):
        tls.client_context(ClientTrust(ca_file=str(file)))


def s_client(port: int, *arguments: str) -> str:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", NAME, *arguments]
    done = subprocess.run(command, input=b"", capture_output=True, timeout=20, check=False)
    return (done.stdout + done.stderr).decode(errors="replace")


def test_openssl_accepts_the_chain_both_ways(tower: Authority, serving: Pair, tmp_path: Path) -> None:
    key = generate_key()
    admin = tower.issue_client("alice", ["devs"], public_key=key.public_key(), at=NOW)
    files = {"root.pem": tower.bundle.root_pem, "leaf.pem": admin.chain_pem, "key.pem": key_to_pem(key)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            raw, _ = listener.accept()
            raw.settimeout(20)
            with callers(tower, serving).wrap_socket(raw, server_side=True) as end:
                seen.append(end.getpeercert(True) or b"")
                end.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        said = s_client(
            listener.getsockname()[1],
            *("-CAfile", str(tmp_path / "root.pem"), "-verify_return_error", "-verify_hostname", NAME, "-x509_strict"),
            *("-cert", str(tmp_path / "leaf.pem"), "-key", str(tmp_path / "key.pem"), "-alpn", "http/1.1"),
        )
        thread.join()
    assert "Verification: OK" in said
    assert "ALPN protocol: http/1.1" in said
    assert seen == [admin.chain_der[0]]


GO_PROGRAM = """
package main

import ("crypto/x509"; "encoding/pem"; "fmt"; "os"; "time")

func read(name string) []*x509.Certificate {
	data, err := os.ReadFile(name); if err != nil { panic(err) }
	var all []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes); if err != nil { panic(err) }
		all = append(all, c)
	}
	return all
}

func main() {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(read(os.Args[1])[0])
	chain := read(os.Args[2])
	for _, c := range chain[1:] { between.AddCert(c) }
	usage := x509.ExtKeyUsageServerAuth
	if os.Args[3] == "" { usage = x509.ExtKeyUsageClientAuth }
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: os.Args[3],
		CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{usage}})
	fmt.Println(err)
}
"""


@pytest.mark.slow
@pytest.mark.timeout(240)  # the first build compiles Go's own packages
def test_go_accepts_what_kubectl_will_see(tower: Authority, serving: Pair, tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text(GO_PROGRAM)
    (tmp_path / "go.mod").write_text("module check\n\ngo 1.20\n")
    flags = {"CGO_ENABLED": "0", "GOFLAGS": "-trimpath"}  # the control plane is built so, and has left the libraries
    subprocess.run(
        ["go", "build", "-o", "check", "."],
        cwd=tmp_path, env=os.environ | flags, check=True, timeout=220, capture_output=True,
    )  # fmt: skip
    key = generate_key()
    public = key.public_key()
    server = tower.issue_server("s1", ["*.members.tower"], public_key=public, at=NOW)
    client = tower.issue_client("alice", public_key=public, at=NOW)
    (tmp_path / "root.pem").write_bytes(tower.bundle.root_pem)
    for issued, name, expected in (
        (serving.issued, NAME, "<nil>"),
        (server, "edge-9.members.tower", "<nil>"),
        (client, "", "<nil>"),
        (client, NAME, "certificate"),
        (serving.issued, "edge-2.members.tower", "not edge-2"),
    ):
        (tmp_path / "chain.pem").write_bytes(issued.chain_pem)
        said = subprocess.run(
            ["./check", "root.pem", "chain.pem", name], cwd=tmp_path, check=True, capture_output=True, timeout=60
        ).stdout.decode()
        assert expected in said
