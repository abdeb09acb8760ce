"""A tower whose records lie in a host cluster: the server, an agent and a caller, on two real apiservers."""

from __future__ import annotations

import json
import signal
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.conftest import view
from tests.lab.controlplane import ControlPlane
from tests.lab.hostplane import crds
from tests.lab.processes import wait_until
from tests.lab.world import TowerWorld

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
NAMESPACE = "tower-host"
REPLICA = {"name": "hosted", "listen": "127.0.0.1:0"}
PATIENCE = 60.0


@pytest.fixture(scope="module")
def tower(host_plane: ControlPlane, member: ControlPlane) -> Iterator[TowerWorld]:
    crds(host_plane)
    host_plane.kubectl("create", "namespace", NAMESPACE)
    store = {"kind": "kubernetes", "namespace": NAMESPACE, "kubeconfig": str(host_plane.admin_kubeconfig)}
    with (
        tempfile.TemporaryDirectory(prefix="tower-") as folder,
        TowerWorld(Path(folder), host="clustered", settings={"store": store, "replica": REPLICA}) as world,
    ):
        world.join("edge", member)
        yield world
    host_plane.kubectl("delete", "members", "--all")


def test_a_caller_reaches_the_member_and_nothing_lies_on_disk(
    tower: TowerWorld, host_plane: ControlPlane, member: ControlPlane
) -> None:
    through = view(member, "hosted", tower.kubeconfig("edge"))
    assert through.kubectl("get", "configmap", "one", "-n", "shared", "-o", "jsonpath={.data.name}").text == "one"
    assert not (tower.folder / "server").exists(), "the state directory is not used"
    shown = json.loads(host_plane.kubectl("get", "member", "edge", "-o", "json").stdout)
    port = shown["spec"]["ports"]["kubernetes"]
    leases = host_plane.kubectl("get", "leases", "-n", NAMESPACE, "-o", "name").text.split()
    names = (f"port-{port}", "tower-controller", "tower-replica-hosted")
    assert sorted(leases) == [f"lease.coordination.k8s.io/{name}" for name in names]
    secrets = host_plane.kubectl("get", "secrets", "-n", NAMESPACE, "-o", "name").text
    assert "tower-secret-authority" in secrets
    assert "tower-agent-edge." in secrets


def test_a_restarted_server_finds_its_members_again(tower: TowerWorld, member: ControlPlane) -> None:
    through = view(member, "hosted", tower.kubeconfig("edge"))
    assert tower.stop_server() == 0
    tower.start()
    tower.until_state("edge", "Connected", deadline=PATIENCE)
    assert through.kubectl("get", "configmap", "two", "-n", "shared", "-o", "jsonpath={.data.name}").text == "two"


def test_callers_do_not_notice_that_the_hosts_apiserver_is_silent(
    tower: TowerWorld, host_plane: ControlPlane, member: ControlPlane
) -> None:
    through = view(member, "hosted", tower.kubeconfig("edge"))
    (apiserver,) = [child for child in host_plane.children if child.name == "kube-apiserver"]
    apiserver.send(signal.SIGSTOP)
    try:
        got = through.kubectl("get", "configmap", "one", "-n", "shared", "-o", "jsonpath={.data.name}")
        refused = tower.towerctl("create", "token", "edge", check=False)
        with urllib.request.urlopen(f"http://127.0.0.1:{tower.health_port}/readyz", timeout=10) as answer:
            ready = answer.status
        tower.restart_agent("edge")  # it has to dial anew, and its record cannot be read
        wait_until(lambda: through.kubectl("get", "namespaces").code == 0, "requests get through again", PATIENCE)
    finally:
        apiserver.send(signal.SIGCONT)
    assert got.text == "one"
    assert ready == 200, "all replicas would be taken out of service at once"
    assert refused.code != 0
    assert b"TWR114" in refused.stderr
    wait_until(
        lambda: tower.towerctl("create", "token", "edge", check=False).code == 0, "tokens can be made again", PATIENCE
    )


def test_the_server_stays_small(tower: TowerWorld) -> None:
    """Its own pages, the interpreter and libraries included."""
    status = Path(f"/proc/{tower.server.pid}/status").read_text()
    (resident,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")]
    assert resident < 150 * 1024, f"{resident / 1024:.0f} MiB"
