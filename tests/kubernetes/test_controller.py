"""A tower server under exactly the account and rules of deploy/base: what `kubectl` does on the host happens here, is
undone here, and needs every right that is given and no other."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from certs.verify import certificate_names
from tests.deploy.rendering import DEPLOY, namespaces, render
from tests.lab.controlplane import ControlPlane, run
from tests.lab.hostplane import crds
from tests.lab.processes import wait_until, whole_lines
from tests.lab.world import TowerWorld

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(240)]
ACCOUNT = "system:serviceaccount:tower-system:tower-server"
NAMESPACE = "tower-system"
MEMBER = "edge-1"
PATIENCE = 40.0
CALLERS = {"address": "127.0.0.1", "cluster_address": "10.77.0.1"}  # nobody calls by it here

Rule = tuple[str, str, str]


@pytest.fixture(scope="module")
def tower(host_plane: ControlPlane, member: ControlPlane) -> Iterator[TowerWorld]:
    crds(host_plane)
    namespaces(host_plane)
    kinds = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
    host_plane.install([each for each in render(host_plane, "base") if each["kind"] in kinds])
    # Of other hosts of this session, which share the member.
    member.kubectl("delete", "configmaps", "-n", "kube-system", "-l", "tower.kubesphere.io/mark")
    token = host_plane.kubectl("create", "token", "tower-server", "-n", "tower-system", "--duration=2h").text
    kubeconfig = host_plane.kubeconfig("tower-server", token=token)
    store = {"kind": "kubernetes", "namespace": "tower-system", "kubeconfig": str(kubeconfig)}
    with (
        tempfile.TemporaryDirectory(prefix="twr") as folder,
        TowerWorld(Path(folder), host="deployed", settings={"store": store, "callers": CALLERS}) as world,
    ):
        meta = {"name": f"mc-{MEMBER}", "namespace": "tower-system"}
        old = {"selector": {"app": "tower"}, "ports": [{"name": "kubernetes", "port": 6443, "targetPort": 6500}]}
        left = {"addresses": [{"ip": "10.9.9.9"}], "ports": [{"name": "kubernetes", "port": 6500}]}
        host_plane.install([{"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": old}])
        host_plane.install([{"apiVersion": "v1", "kind": "Endpoints", "metadata": meta, "subsets": [left]}])
        world.join(MEMBER, member)
        yield world
    host_plane.kubectl("delete", "members", "--all")


def resource(name: str) -> dict:
    spec = {"connection": {"type": "proxy"}, "externalKubeAPIEnabled": True}
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

    def told() -> dict[str, tuple[str, str]]:
        listed = seen(host_plane, "members", "edge-1").get("status", {}).get("conditions", ())
        return {each["type"]: (each["status"], each["reason"]) for each in listed}

    wanted = {"Accepted": ("True", "Accepted"), "MemberReady": ("True", "Connected")}
    wait_until(lambda: wanted.items() <= told().items(), "both conditions of the record", PATIENCE)


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


def test_the_certificate_follows_the_addresses_of_the_services(tower: TowerWorld, host_plane: ControlPlane) -> None:
    port = tower.cluster(MEMBER)["ports"]["kubernetes"]

    def carried() -> frozenset[str]:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
            context.wrap_socket(raw, server_hostname=f"{MEMBER}.members.tower") as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
            assert shown is not None
            return certificate_names([shown])

    service = json.loads(host_plane.kubectl("get", "service", f"mc-{MEMBER}", "-n", NAMESPACE, "-o", "json").stdout)
    wait_until(lambda: service["spec"]["clusterIP"] in carried(), "the ClusterIP in the certificate", PATIENCE)
    published = json.dumps({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}})
    patch = ("patch", "service", f"mc-{MEMBER}-external", "-n", NAMESPACE, "--subresource=status", "--type=merge", "-p")
    host_plane.kubectl(*patch, published)
    wait_until(lambda: "203.0.113.7" in carried(), "the published address in the certificate", PATIENCE)


def test_callers_and_tunnels_need_no_leader(tower: TowerWorld, host_plane: ControlPlane, member: ControlPlane) -> None:
    def leads() -> bool:
        done = run(["curl", "-s", f"http://127.0.0.1:{tower.health_port}/metrics"], tower.environment())
        return "tower_leader 1.0" in done.text

    def give(holder: str) -> None:
        patch = json.dumps({"spec": {"holderIdentity": holder, "leaseDurationSeconds": 3600}})
        host_plane.kubectl("patch", "lease", "tower-controller", "-n", NAMESPACE, "--type=merge", "-p", patch)

    wait_until(leads, "the server leads", PATIENCE)
    give("somebody-who-is-not-there")
    wait_until(lambda: not leads(), "nobody leads", PATIENCE)
    command = [str(member.programs["kubectl"]), "--kubeconfig", str(tower.kubeconfig(MEMBER)), "get", "namespaces"]
    assert "kube-system" in run(command, member.environment()).text
    assert tower.cluster(MEMBER)["ready"] == "True"
    give("")
    wait_until(leads, "the server leads again", PATIENCE)


def asked_for(plane: ControlPlane) -> tuple[set[Rule], set[Rule]]:
    """What the account was given, and what it was refused, by the apiserver's own audit log."""
    given, refused = set(), set()
    for line in whole_lines(plane.audit_log):
        event = json.loads(line)
        reference = event.get("objectRef")
        user = event["user"].get("username")  # none where a request was refused before it was anybody's
        if user != ACCOUNT or reference is None or event["stage"] == "RequestReceived":
            continue
        resource = "/".join(filter(None, [reference["resource"], reference.get("subresource")]))
        rule = (reference.get("apiGroup", ""), resource, event["verb"])
        (refused if event.get("responseStatus", {}).get("code") == 403 else given).add(rule)
    return given, refused


def granted() -> set[Rule]:
    documents = yaml.safe_load_all((DEPLOY / "base" / "rbac.yaml").read_text())
    return {
        (group, resource, verb)
        for document in documents
        for rule in document.get("rules", ())
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_server_has_used_every_right_that_it_is_given_and_lacked_none(
    tower: TowerWorld, host_plane: ControlPlane
) -> None:
    """After all of the above, and what else is rare: a record without its resource, an edited slice."""
    ghost = {"name": "ghost", "uid": "u", "created": 1.0, "resource": "one-that-is-gone"}
    meta = {"name": "ghost", "labels": {"tower.kubesphere.io/record": "cluster"}}
    member = {"apiVersion": "tower.kubesphere.io/v1alpha1", "kind": "Member", "metadata": meta, "spec": ghost}
    # In the server's name: what somebody else writes is taken for a copy that was put back, and kept.
    host_plane.kubectl("create", "--field-manager=tower-server", "-f", "-", stdin=json.dumps(member).encode())
    slices = ("get", "endpointslices", "-n", NAMESPACE, "-l", f"tower.kubesphere.io/cluster={MEMBER}", "-o", "name")
    wait_until(lambda: bool(host_plane.kubectl(*slices).text), "slices", PATIENCE)
    touched = host_plane.kubectl(*slices).text.split()[0]
    host_plane.kubectl("annotate", "-n", NAMESPACE, touched, "tower.kubesphere.io/applied=changed", "--overwrite")
    wait_until(lambda: not seen(host_plane, "members", "ghost"), "a record whose resource is gone goes", PATIENCE)
    host_plane.kubectl("delete", "clusters.cluster.kubesphere.io", MEMBER, "--timeout=40s")
    tower.stop_server()
    given, refused = asked_for(host_plane)
    assert not refused, "rbac.yaml lacks these"
    assert given <= granted()
    assert granted() - given == set(), "rbac.yaml grants what nobody uses"
