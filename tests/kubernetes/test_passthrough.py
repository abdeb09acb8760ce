"""A member in `passthrough` mode: its own certificates and credentials from end to end, HTTP/2 included."""

from __future__ import annotations

import json
import socket
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.kubernetes.conftest import MEMBER, view
from tests.kubernetes.views import TRANSPORTS, Pair, Scrub, View, assert_same
from tests.lab.controlplane import ControlPlane
from tests.lab.world import TowerWorld

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def relaying(member: ControlPlane) -> Iterator[TowerWorld]:
    with tempfile.TemporaryDirectory(prefix="tower-") as folder, TowerWorld(Path(folder), host="relaying") as tower:
        tower.join(MEMBER, member, settings={"services": {"kubernetes": {"mode": "passthrough"}}})
        yield tower


def port_of(tower: TowerWorld) -> int:
    port: int = tower.cluster(MEMBER)["ports"]["kubernetes"]
    return port


@pytest.fixture(scope="module")
def owner(member: ControlPlane, relaying: TowerWorld) -> Pair:
    """The member's own administrator: the same file both ways, but for the address."""
    config = yaml.safe_load(member.admin_kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port_of(relaying)}"
    path = relaying.folder / "owner.kubeconfig"
    path.touch(0o600)
    path.write_text(yaml.safe_dump(config))
    return Pair("owner", view(member, "direct", member.admin_kubeconfig), view(member, "tunnel", path))


def test_the_owners_credential_works_as_it_does_straight(owner: Pair) -> None:
    for command in (["auth", "whoami", "-o", "json"], ["get", "pods", "-A", "-o", "json"], ["get", "--raw", "/apis"]):
        direct, tunnel = (caller.kubectl(*command) for caller in owner.both())
        assert direct.code == 0
        assert_same(owner, direct, tunnel, Scrub(patterns=[rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"]))
    assert "system:masters" in json.dumps(json.loads(owner.tunnel.kubectl("auth", "whoami", "-o", "json").stdout))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_streams_work(owner: Pair, transport: str) -> None:
    done = owner.tunnel.kubectl(
        "exec",
        "-i",
        "-n",
        "shared",
        "shared",
        "--",
        "sh",
        "-c",
        "cat; exit 5",
        stdin=b"in and out",
        env=TRANSPORTS[transport],
    )
    assert (done.code, done.stdout) == (5, b"in and out")


def test_the_members_own_certificate_and_http2_are_met_at_the_port(member: ControlPlane, relaying: TowerWorld) -> None:
    context = ssl.create_default_context(cadata=member.ca.pem.decode())
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port_of(relaying)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="kubernetes.default.svc") as connection,
    ):
        assert connection.selected_alpn_protocol() == "h2"
        subject = dict(pair[0] for pair in connection.getpeercert()["subject"])
        assert subject["commonName"] == "apiserver"


def test_a_certificate_of_the_hosts_counts_for_nothing(member: ControlPlane, relaying: TowerWorld) -> None:
    """The member decides alone: whom the host calls its admin is unknown there."""
    config = yaml.safe_load(relaying.kubeconfig(MEMBER).read_text())
    config["clusters"][0]["cluster"] |= yaml.safe_load(member.admin_kubeconfig.read_text())["clusters"][0]["cluster"]
    config["clusters"][0]["cluster"] |= {
        "server": f"https://127.0.0.1:{port_of(relaying)}",
        "tls-server-name": "localhost",
    }
    path = relaying.folder / "host-admin.kubeconfig"
    path.touch(0o600)
    path.write_text(yaml.safe_dump(config))
    caller: View = view(member, "tunnel", path)
    done = caller.kubectl("get", "namespaces")
    assert done.code == 1
    assert b"Unauthorized" in done.stderr or b"provide credentials" in done.stderr


def test_without_a_tunnel_the_port_just_closes(member: ControlPlane, relaying: TowerWorld) -> None:
    port = port_of(relaying)
    relaying.members[MEMBER].agent.stop()
    relaying.until_state(MEMBER, "TunnelDown")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        context = ssl.create_default_context(cadata=member.ca.pem.decode())
        with pytest.raises((ConnectionError, ssl.SSLError)):
            context.wrap_socket(plain, server_hostname="localhost")
