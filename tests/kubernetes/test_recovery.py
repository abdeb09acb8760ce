"""What docs/OPERATIONS.md says of backing up and recovering a tower whose records lie in a host cluster: done here."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.conftest import view
from tests.lab.controlplane import ControlPlane
from tests.lab.hostplane import crds
from tests.lab.processes import wait_until
from tests.lab.world import TowerWorld

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]
NAMESPACE = "tower-recovered"
MEMBER = "kept"
PATIENCE = 90.0
RECORDS = ("-l", "tower.kubesphere.io/record")


@pytest.fixture(scope="module")
def tower(host_plane: ControlPlane, member: ControlPlane) -> Iterator[TowerWorld]:
    crds(host_plane)
    host_plane.kubectl("create", "namespace", NAMESPACE)
    store = {"kind": "kubernetes", "namespace": NAMESPACE, "kubeconfig": str(host_plane.admin_kubeconfig)}
    replica = {"name": "recovered", "listen": "127.0.0.1:0"}
    with (
        tempfile.TemporaryDirectory(prefix="tower-") as folder,
        TowerWorld(Path(folder), host="recovered", settings={"store": store, "replica": replica}) as world,
    ):
        world.join(MEMBER, member)
        yield world
    host_plane.kubectl("delete", "member", MEMBER, "--ignore-not-found")


def copy_of(plane: ControlPlane) -> list[dict[str, Any]]:
    kept = json.loads(plane.kubectl("get", "secrets,leases", "-n", NAMESPACE, *RECORDS, "-o", "json").stdout)["items"]
    return [*kept, json.loads(plane.kubectl("get", "member", MEMBER, "-o", "json").stdout)]


def down(plane: ControlPlane) -> None:
    """At once: an apiserver that is asked to end waits for the watches that it serves."""
    for child in plane.children:
        child.send(signal.SIGKILL)
    plane.stop()


def stripped(body: dict[str, Any]) -> dict[str, Any]:
    metadata = {
        key: body["metadata"][key] for key in ("name", "namespace", "labels", "annotations") if key in body["metadata"]
    }
    return {**body, "metadata": metadata}


def test_a_copy_of_the_objects_brings_the_tower_and_its_members_back(
    tower: TowerWorld, host_plane: ControlPlane, member: ControlPlane
) -> None:
    through = view(member, "recovered", tower.kubeconfig(MEMBER))
    before = tower.cluster(MEMBER)
    copied = copy_of(host_plane)
    assert "tower-secret-authority" in [body["metadata"]["name"] for body in copied]
    assert tower.stop_server() == 0
    host_plane.kubectl("delete", "secrets,leases,services,endpointslices", "-n", NAMESPACE, "--all")
    host_plane.kubectl("delete", "member", MEMBER)
    for body in copied:
        host_plane.kubectl("create", "-f", "-", stdin=json.dumps(stripped(body)).encode())
    tower.start()
    tower.until_state(MEMBER, "Connected", deadline=PATIENCE)
    after = tower.cluster(MEMBER)
    assert (after["uid"], after["ports"], after["agents"]) == (before["uid"], before["ports"], before["agents"])
    kept = ("get", "configmap", "one", "-n", "shared", "-o", "jsonpath={.data.name}")
    wait_until(lambda: through.kubectl(*kept).text == "one", "a kubeconfig of before works", PATIENCE)


def test_servers_that_run_follow_an_etcd_that_was_put_back_and_forget_no_revocation(tmp_path: Path) -> None:
    """The apiserver takes their watches from versions that it has not come to, and would never tell them more."""
    settings = {"replica": {"name": "put-back", "listen": "127.0.0.1:0"}}
    with tempfile.TemporaryDirectory(prefix="twr") as folder, ControlPlane(tmp_path, pods=False) as plane:
        crds(plane)
        plane.kubectl("create", "namespace", NAMESPACE)
        settings["store"] = {"kind": "kubernetes", "namespace": NAMESPACE, "kubeconfig": str(plane.admin_kubeconfig)}
        with TowerWorld(Path(folder), host="put-back", settings=settings) as tower:

            def served() -> list[str]:
                return [each["name"] for each in tower.call("GET", "/v1/clusters")[1]["items"]]

            def revoked() -> set[str]:
                return {each["name"] for each in tower.call("GET", "/v1/revocations")[1]["items"]}

            for name in ("deleted", "kept"):
                tower.towerctl("add", "cluster", name)
            tower.towerctl("revoke", "caller", "before")
            down(plane)
            shutil.copytree(tmp_path / "etcd", tmp_path / "earlier")
            plane.start()
            tower.towerctl("add", "cluster", "since")
            tower.towerctl("delete", "cluster", "deleted", "--yes")
            tower.towerctl("revoke", "caller", "after")
            wait_until(lambda: served() == ["kept", "since"], "what was changed is served", PATIENCE)
            down(plane)
            shutil.rmtree(tmp_path / "etcd")
            (tmp_path / "earlier").rename(tmp_path / "etcd")
            plane.start()
            wait_until(lambda: served() == ["deleted", "kept"], "what there is again is served", PATIENCE)
            said = "revocations-put-back"
            wait_until(lambda: said in tower.server.log.read_text(), "the list is written again", PATIENCE)
            assert tower.stop_server() == 0
            tower.start()
            assert revoked() >= {"before", "after"}
