"""What docs/OPERATIONS.md says of backing up and recovering a tower whose records lie in a host cluster: done here."""

from __future__ import annotations

import json
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
