"""A tower server that keeps its records in a host cluster: what `kubectl` does there happens here, and is undone."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.lab.controlplane import ControlPlane, run
from tests.lab.hostplane import crds
from tests.lab.processes import wait_until
from tests.lab.world import TowerWorld

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(180)]
NAMESPACE = "tower-controlled"
PATIENCE = 40.0


@pytest.fixture(scope="module")
def tower(host_plane: ControlPlane, member: ControlPlane) -> Iterator[TowerWorld]:
    crds(host_plane)
    host_plane.kubectl("create", "namespace", NAMESPACE)
    store = {"kind": "kubernetes", "namespace": NAMESPACE, "kubeconfig": str(host_plane.admin_kubeconfig)}
    settings = {"store": store}
    with tempfile.TemporaryDirectory(prefix="twr") as folder, TowerWorld(Path(folder), settings=settings) as world:
        world.join("edge-1", member)
        yield world
        clusters = host_plane.kubectl("get", "clusters.cluster.kubesphere.io", "-o", "name").text.split()
        for name in clusters:
            host_plane.kubectl("delete", name, "--timeout=30s")
    host_plane.kubectl("delete", "members", "--all")


def resource(name: str) -> dict:
    spec = {"connection": {"type": "proxy"}, "joinFederation": False}
    return {"apiVersion": "cluster.kubesphere.io/v1alpha1", "kind": "Cluster", "metadata": {"name": name}, "spec": spec}


def seen(plane: ControlPlane, kind: str, name: str) -> dict:
    done = plane.kubectl("get", kind, name, "-o", "json", check=False)
    return json.loads(done.stdout) if done.code == 0 else {}


def test_a_joined_member_gets_a_kubeconfig_in_its_resource_that_works(
    tower: TowerWorld, host_plane: ControlPlane, member: ControlPlane, tmp_path: Path
) -> None:
    host_plane.install([resource("edge-1")])

    def connection() -> dict:
        return seen(host_plane, "clusters.cluster.kubesphere.io", "edge-1").get("spec", {}).get("connection", {})

    wait_until(lambda: "kubeconfig" in connection(), "a kubeconfig in the Cluster", PATIENCE)
    config = yaml.safe_load(base64.b64decode(connection()["kubeconfig"]))
    service = json.loads(host_plane.kubectl("get", "service", "mc-edge-1", "-n", NAMESPACE, "-o", "json").stdout)
    assert config["clusters"][0]["cluster"]["server"] == f"https://{service['spec']['clusterIP']}:6443"
    # Nobody routes ClusterIPs here: the Service's target is dialled, under the name that the kubeconfig verifies.
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{service['spec']['ports'][0]['targetPort']}"
    path = tmp_path / "kubeconfig"
    path.touch(0o600)
    path.write_text(yaml.safe_dump(config))
    command = [str(member.programs["kubectl"]), "--kubeconfig", str(path), "get", "namespaces", "-o", "name"]
    done = run(command, member.environment())
    assert "namespace/kube-system" in done.text, done.stderr
    shown = seen(host_plane, "members", "edge-1")["status"]
    ready = next(each for each in shown["conditions"] if each["type"] == "MemberReady")
    assert (ready["status"], ready["reason"]) == ("True", "Connected")


def test_a_cluster_made_by_kubectl_is_served_and_gone_with_its_resource(
    tower: TowerWorld, host_plane: ControlPlane
) -> None:
    host_plane.install([resource("edge-2")])
    wait_until(lambda: tower.call("GET", "/v1/clusters/edge-2")[0] == 200, "the server has heard of it", PATIENCE)
    wait_until(lambda: "kubernetes" in tower.cluster("edge-2")["ports"], "its port is given out", PATIENCE)
    port = tower.cluster("edge-2")["ports"]["kubernetes"]
    command = ["curl", "-sk", "--max-time", "10", f"https://127.0.0.1:{port}/version"]
    wait_until(lambda: run(command, tower.environment()).code == 0, "its port listens", PATIENCE)
    assert json.loads(run(command, tower.environment()).stdout)["code"] == 503
    host_plane.kubectl("delete", "clusters.cluster.kubesphere.io", "edge-2", "--timeout=30s")
    wait_until(lambda: tower.call("GET", "/v1/clusters/edge-2")[0] == 404, "the server has let it go", PATIENCE)
    assert not seen(host_plane, "members", "edge-2")
    assert tower.cluster("edge-1")["ready"] == "True"
