"""A member that is looked into before it is handed on, and is in kubefed's federation for as long as it is asked for.

The host, the member and the tower between them are real; another host in the same member is a mark that it left.
"""

from __future__ import annotations

import base64
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.rendering import DEPLOY, render
from tests.interop.peers import TOKEN, VINTAGES, GoAgent
from tests.lab import kubefed
from tests.lab.controlplane import ControlPlane, run
from tests.lab.hostplane import crds
from tests.lab.kubefed import SPACE
from tests.lab.processes import free_ports, wait_until, whole_lines
from tests.lab.world import TowerWorld

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]
HOST = "federated"
NAMESPACE = "tower-federated"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:tower-server"
PATIENCE = 60.0
ERRANDS = "tower_server.controller.errands"
SOON = {
    f"{ERRANDS}.REFUSED_AGAIN": 1.0,
    f"{ERRANDS}.FEDERATED_AGAIN": 2.0,
    f"{ERRANDS}.FAREWELL_DEADLINE": 5.0,
    "tower_server.controller.hosting.LOOK_EVERY": 1.0,
    "tower_agent.host.COMPARE_EVERY": 1.0,
    "PROBE_INTERVAL": 2.0,
}
HOSTS_SECRET = "thirty-two-letters-of-no-real-one"
OTHER = {"host": "elsewhere", "uid": "u-elsewhere", "cluster": "berlin"}


@cache
def go_port() -> int:
    """Where Go agents come to: chosen when it is about to be used, or something of another test may hold it by then."""
    (port,) = free_ports(1)
    return port


@pytest.fixture(scope="module")
def tower(host_plane: ControlPlane, member: ControlPlane) -> Iterator[TowerWorld]:
    crds(host_plane)
    kubefed.install(host_plane)
    clear(member)
    host_plane.kubectl("create", "namespace", NAMESPACE)
    host_plane.install(rights(host_plane))
    token = host_plane.kubectl("create", "token", "tower-server", "-n", NAMESPACE, "--duration=2h").text
    kubeconfig = host_plane.kubeconfig("tower-federated", token=token)
    store = {"kind": "kubernetes", "namespace": NAMESPACE, "kubeconfig": str(kubeconfig)}
    settings = {
        "store": store,
        "callers": {"address": "127.0.0.1", "cluster_address": "10.78.0.1"},
        "kubesphere_config": f"{NAMESPACE}/kubesphere-config",
        "kubesphere_v1": {"enabled": True, "listen": f"127.0.0.1:{go_port()}"},
    }
    host_plane.install([kubesphere(NAMESPACE, HOSTS_SECRET)])
    with (
        tempfile.TemporaryDirectory(prefix="twr") as folder,
        TowerWorld(Path(folder), host=HOST, settings=settings, constants=SOON) as world,
        ks_apiserver() as address,
    ):
        for name in ("edge", "again", "gone"):
            world.join(name, member)
        world.join("ks", member, settings={"services": {"kubesphere": address}})
        yield world
    host_plane.kubectl("delete", "clusters.cluster.kubesphere.io,members", "--all", "--timeout=10s", check=False)
    clear(member)


def rights(plane: ControlPlane) -> list[dict[str, Any]]:
    """deploy/base and deploy/federation, for an account of this module's own."""
    kinds = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
    found = []
    for each in [*render(plane, "base"), *render(plane, "federation")]:
        if each["kind"] in kinds:
            text = json.dumps(each).replace("tower-system", NAMESPACE)
            if each["kind"].startswith("ClusterRole"):
                text = text.replace('"name": "tower-server"', f'"name": "{NAMESPACE}"').replace(
                    f'"kind": "ServiceAccount", "name": "{NAMESPACE}"',
                    '"kind": "ServiceAccount", "name": "tower-server"',
                )
            found.append(json.loads(text))
    (role, binding) = yaml.safe_load_all((DEPLOY / "overlays" / "kubesphere" / "rbac.yaml").read_text())
    for each in (role, binding):
        each["metadata"]["namespace"] = NAMESPACE
    binding["subjects"][0]["namespace"] = NAMESPACE
    return [*found, role, binding]


class KsApiserver(BaseHTTPRequestHandler):
    """Answers that it is there."""

    def do_GET(self) -> None:
        body = b'{"gitVersion": "v3.4.1"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None: ...


@contextmanager
def ks_apiserver() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), KsApiserver)
    serving = threading.Thread(target=server.serve_forever, name="ks-apiserver")
    serving.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def kubesphere(namespace: str, secret: str) -> dict[str, Any]:
    data = {"kubesphere.yaml": yaml.safe_dump({"authentication": {"jwtSecret": secret}})}
    meta = {"name": "kubesphere-config", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


def clear(member: ControlPlane) -> None:
    """The session's member: whatever other tests' hosts have left in it."""
    member.kubectl("delete", "configmaps", "-n", "kube-system", "-l", "tower.kubesphere.io/mark")
    member.kubectl("delete", "clusterroles,clusterrolebindings", "-l", "tower.kubesphere.io/host")
    member.kubectl("delete", "namespace", SPACE, "--ignore-not-found", "--wait=false")
    kubefed.let_go(member, SPACE)


def read(plane: ControlPlane, kind: str, name: str, *more: str) -> dict[str, Any]:
    done = plane.kubectl("get", kind, name, *more, "-o", "json", check=False)
    return json.loads(done.stdout) if done.code == 0 else {}


def cluster(plane: ControlPlane, name: str) -> dict[str, Any]:
    return read(plane, "clusters.cluster.kubesphere.io", name)


def said(plane: ControlPlane, name: str, kind: str) -> tuple[str, str, str]:
    """Status, reason and message of a condition of the Cluster resource."""
    listed = (cluster(plane, name).get("status") or {}).get("conditions") or []
    found = next((each for each in listed if each["type"] == kind), {})
    return found.get("status", ""), found.get("reason", ""), found.get("message", "")


def until(plane: ControlPlane, name: str, kind: str, status: str, reason: str) -> str:
    wait_until(lambda: said(plane, name, kind)[:2] == (status, reason), f"{kind} of {name}: {reason}", PATIENCE)
    return said(plane, name, kind)[2]


def joined(plane: ControlPlane, member: ControlPlane, name: str) -> None:
    """With what the member's token controller does meanwhile."""

    def looks() -> bool:
        kubefed.fill(member)
        return said(plane, name, "FederationReady")[:2] == ("True", "Joined")

    wait_until(looks, f"{name} has joined the federation", PATIENCE)


def want(plane: ControlPlane, name: str, *, federation: bool) -> None:
    spec = {"connection": {"type": "proxy"}, "joinFederation": federation}
    meta = {"name": name, "labels": {"region": "north"}}
    plane.kubectl(
        "apply",
        "--server-side",
        "--field-manager=person",
        "-f",
        "-",
        stdin=json.dumps(
            {"apiVersion": "cluster.kubesphere.io/v1alpha1", "kind": "Cluster", "metadata": meta, "spec": spec}
        ).encode(),
    )


def marks(member: ControlPlane) -> list[str]:
    found = member.kubectl(
        "get", "configmaps", "-n", "kube-system", "-l", "tower.kubesphere.io/mark", "-o", "name"
    ).text
    return sorted(each.partition("/")[2] for each in found.split())


def of_kubefed(member: ControlPlane) -> list[str]:
    """What this host's kubefed has in the member."""
    kinds = "serviceaccounts,secrets,clusterroles,clusterrolebindings"
    selector = f"tower.kubesphere.io/host={HOST}"
    found = member.kubectl("get", kinds, "-n", SPACE, "-l", selector, "-o", "name").text
    return sorted(found.split())


def settled(check: Callable[[], bool], what: str) -> None:
    wait_until(check, what, PATIENCE)


def test_a_member_of_another_host_is_refused_until_somebody_there_says_that_it_is_shared(
    tower: TowerWorld, host_plane: ControlPlane, member: ControlPlane
) -> None:
    meta = {
        "name": "tower-host-elsewhere",
        "namespace": "kube-system",
        "labels": {"tower.kubesphere.io/mark": "host"},
    }
    member.install([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": OTHER}])
    want(host_plane, "edge", federation=True)
    message = until(host_plane, "edge", "Accepted", "False", "OwnedByAnotherHost")
    assert "TWR124" in message
    assert "'elsewhere'" in message
    assert "'berlin'" in message
    assert "delete configmap tower-host-elsewhere" in message
    checked = tower.towerctl("check", "edge", check=False)
    assert checked.code == 1
    assert "TWR124" in checked.text
    assert "delete configmap tower-host-elsewhere" in checked.text
    assert marks(member) == ["tower-host-elsewhere"]
    assert "kubeconfig" not in cluster(host_plane, "edge")["spec"]["connection"]
    assert not read(host_plane, "kubefedclusters", "edge", "-n", SPACE)
    assert tower.cluster("edge")["ready"] == "True", "callers with credentials of their own are served"
    member.kubectl(
        "annotate", "configmap", "tower-host-elsewhere", "-n", "kube-system", "tower.kubesphere.io/shared=true"
    )
    until(host_plane, "edge", "Accepted", "True", "Accepted")
    assert marks(member) == ["tower-host-elsewhere", f"tower-host-{HOST}"]
    settled(lambda: "kubeconfig" in cluster(host_plane, "edge")["spec"]["connection"], "the kubeconfig")


def test_kubefed_gets_an_account_that_works_by_the_port_and_the_root_that_it_is_told(
    tower: TowerWorld, host_plane: ControlPlane, member: ControlPlane
) -> None:
    joined(host_plane, member, "edge")
    spec = read(host_plane, "kubefedclusters", "edge", "-n", SPACE)["spec"]
    service = read(host_plane, "service", "mc-edge", "-n", NAMESPACE)["spec"]
    assert spec["apiEndpoint"] == f"https://{service['clusterIP']}:6443"
    secret = read(host_plane, "secret", spec["secretRef"]["name"], "-n", SPACE)
    assert read(host_plane, "kubefedclusters", "edge", "-n", SPACE)["metadata"]["labels"]["region"] == "north"
    root = tower.folder / "root.pem"
    root.write_bytes(base64.b64decode(spec["caBundle"]))
    # Nobody routes ClusterIPs here: the Service's target is dialled, under a name that the certificate carries.
    command = [
        str(member.programs["kubectl"]),
        f"--server=https://127.0.0.1:{service['ports'][0]['targetPort']}",
        f"--certificate-authority={root}",
        "--tls-server-name=edge.members.tower",
        f"--token={base64.b64decode(secret['data']['token']).decode()}",
    ]
    done = run([*command, "auth", "can-i", "*", "*"], member.environment())
    assert done.text == "yes", done.stderr
    done = run([*command, "auth", "whoami"], member.environment())
    assert f"system:serviceaccount:{SPACE}:edge.{HOST}" in done.text


def test_what_somebody_takes_away_or_changes_comes_back(
    tower: TowerWorld, host_plane: ControlPlane, member: ControlPlane
) -> None:
    role = f"kubefed-controller-manager:edge.{HOST}"
    member.kubectl("delete", "clusterrolebinding", role)
    host_plane.kubectl("delete", "secret", "edge-secret", "-n", SPACE)
    broken = json.dumps({"spec": {"caBundle": base64.b64encode(b"Go Tower's").decode()}})
    host_plane.kubectl("patch", "kubefedcluster", "edge", "-n", SPACE, "--type=merge", "-p", broken)
    settled(lambda: bool(read(member, "clusterrolebinding", role)), "the binding in the member")
    settled(lambda: bool(read(host_plane, "secret", "edge-secret", "-n", SPACE)), "the token on the host")
    settled(
        lambda: (
            b"BEGIN" in base64.b64decode(read(host_plane, "kubefedclusters", "edge", "-n", SPACE)["spec"]["caBundle"])
        ),
        "the tower's root",
    )


def test_the_same_member_under_a_second_name_is_refused_and_leaves_nothing(
    tower: TowerWorld, host_plane: ControlPlane, member: ControlPlane
) -> None:
    want(host_plane, "again", federation=True)
    message = until(host_plane, "again", "Accepted", "False", "DuplicateMember")
    assert "TWR123" in message
    assert "'edge'" in message
    assert said(host_plane, "again", "FederationReady")[1] == "NotAccepted"
    host_plane.kubectl("delete", "clusters.cluster.kubesphere.io", "again", "--timeout=30s")
    assert f"tower-host-{HOST}" in marks(member), "it is the first one's"
    assert said(host_plane, "edge", "Accepted")[0] == "True"


def test_leaving_the_federation_takes_all_of_it_away_and_nothing_else(
    tower: TowerWorld, host_plane: ControlPlane, member: ControlPlane
) -> None:
    assert of_kubefed(member)
    want(host_plane, "edge", federation=False)
    until(host_plane, "edge", "FederationReady", "False", "Left")
    assert not read(host_plane, "kubefedclusters", "edge", "-n", SPACE)
    assert not read(host_plane, "secret", "edge-secret", "-n", SPACE)
    assert of_kubefed(member) == []
    assert read(member, "namespace", SPACE)["metadata"].get("deletionTimestamp"), "nobody else had anything in it"
    assert kubefed.let_go(member, SPACE)
    assert said(host_plane, "edge", "Accepted")[0] == "True"
    assert "federated" not in str(read(host_plane, "member", "edge")["spec"].get("federated", ""))


def test_a_member_that_is_away_leaves_on_the_host_at_once_and_there_when_it_is_back(
    tower: TowerWorld, host_plane: ControlPlane, member: ControlPlane
) -> None:
    want(host_plane, "edge", federation=True)
    joined(host_plane, member, "edge")
    tower.members["edge"].agent.stop()
    tower.until_state("edge", "TunnelDown", deadline=PATIENCE)
    want(host_plane, "edge", federation=False)
    message = until(host_plane, "edge", "FederationReady", "False", "LeftBehind")
    assert f"edge.{HOST}" in message
    assert not read(host_plane, "kubefedclusters", "edge", "-n", SPACE)
    assert of_kubefed(member)
    tower.restart_agent("edge")
    until(host_plane, "edge", "FederationReady", "False", "Left")
    assert of_kubefed(member) == []
    kubefed.let_go(member, SPACE)


def test_a_deleted_cluster_takes_its_mark_along(
    tower: TowerWorld, host_plane: ControlPlane, member: ControlPlane
) -> None:
    want(host_plane, "edge", federation=True)
    joined(host_plane, member, "edge")
    host_plane.kubectl("delete", "clusters.cluster.kubesphere.io", "edge", "--timeout=60s")
    assert marks(member) == ["tower-host-elsewhere"]
    assert of_kubefed(member) == []
    assert not read(host_plane, "kubefedclusters", "edge", "-n", SPACE)
    assert not read(host_plane, "secret", "edge-secret", "-n", SPACE)
    kubefed.let_go(member, SPACE)


def test_a_cluster_whose_member_is_away_is_deleted_all_the_same_and_says_what_stays(
    tower: TowerWorld, host_plane: ControlPlane, member: ControlPlane
) -> None:
    want(host_plane, "gone", federation=True)
    joined(host_plane, member, "gone")
    tower.members["gone"].agent.stop()
    tower.until_state("gone", "TunnelDown", deadline=PATIENCE)
    host_plane.kubectl("delete", "clusters.cluster.kubesphere.io", "gone", "--timeout=30s")
    assert not read(host_plane, "kubefedclusters", "gone", "-n", SPACE)
    assert not read(host_plane, "secret", "gone-secret", "-n", SPACE)
    selector = "reason=LeftInMember,involvedObject.name=gone"
    told = json.loads(host_plane.kubectl("get", "events", "--field-selector", selector, "-o", "json").stdout)["items"]
    (message,) = [each["message"] for each in told]
    for left in (f"configmap tower-host-{HOST}", f"gone.{HOST}", f"kubefed-controller-manager:gone.{HOST}"):
        assert left in message


def test_a_member_whose_kubesphere_has_another_secret_is_refused_until_it_has_the_hosts(
    tower: TowerWorld, host_plane: ControlPlane, member: ControlPlane
) -> None:
    member.install([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kubesphere-system"}}])
    member.install([kubesphere("kubesphere-system", "another")])
    want(host_plane, "ks", federation=False)
    message = until(host_plane, "ks", "Accepted", "False", "KubeSphereDiffers")
    assert "TWR125: the member's ConfigMap kubesphere-system/kubesphere-config cannot be read" in message
    service = ["--service", "kubesphere=ks-apiserver.kubesphere-system.svc:80"]
    rendered = tower.towerctl("manifest", "ks", "--no-token", "-n", f"tower-{HOST}", *service).stdout
    objects = [each for each in yaml.safe_load_all(rendered) if each]
    member.install([each for each in objects if each["metadata"].get("namespace") == "kubesphere-system"])
    differs = "kubesphere-system/kubesphere-config is not this host's"
    settled(lambda: differs in said(host_plane, "ks", "Accepted")[2], "the two are compared")
    member.install([kubesphere("kubesphere-system", HOSTS_SECRET)])
    until(host_plane, "ks", "Accepted", "True", "Accepted")
    host_plane.kubectl("delete", "clusters.cluster.kubesphere.io", "ks", "--timeout=30s")
    member.kubectl("delete", "configmap", "kubesphere-config", "-n", "kubesphere-system")
    sent = (tower.folder / "agent-ks.log").read_text() + (tower.folder / "tower-server.log").read_text()
    assert HOSTS_SECRET not in sent


def test_a_kubefed_cluster_of_go_towers_time_trusts_the_tower_as_soon_as_its_go_agent_comes_here(
    tower: TowerWorld, host_plane: ControlPlane, member: ControlPlane
) -> None:
    meta, spec = {"name": "old"}, {"connection": {"type": "proxy", "token": TOKEN}, "joinFederation": True}
    resource = {"apiVersion": "cluster.kubesphere.io/v1alpha1", "kind": "Cluster", "metadata": meta, "spec": spec}
    host_plane.install([resource])
    settled(lambda: bool(read(host_plane, "service", "mc-old", "-n", NAMESPACE)), "its Service")
    address = read(host_plane, "service", "mc-old", "-n", NAMESPACE)["spec"]["clusterIP"]
    before = {
        "apiEndpoint": f"https://{address}:6443",
        "caBundle": base64.b64encode(b"the published root of Go Tower").decode(),
        "secretRef": {"name": "made-by-kubesphere"},
    }
    meta = {"name": "old", "namespace": SPACE}
    api = "core.kubefed.io/v1beta1"
    host_plane.install([{"apiVersion": api, "kind": "KubeFedCluster", "metadata": meta, "spec": before}])
    credential = member.kubeconfig("go-agent-federated", groups=["system:masters"])
    server = f"http://127.0.0.1:{go_port()}"
    agent = GoAgent(tower.folder / "go", VINTAGES[1], server, credential=credential, name="old")
    try:
        agent.start()
        until(host_plane, "old", "FederationReady", "True", "JoinedByOther")
        until(host_plane, "old", "Accepted", "True", "Accepted")
        after = read(host_plane, "kubefedclusters", "old", "-n", SPACE)["spec"]
        root = base64.b64decode(after.pop("caBundle"))
        assert root == tower.call("GET", "/v1/clusters/old/connection")[1]["ca"].encode()
        assert after == {key: value for key, value in before.items() if key != "caBundle"}
        binding = f"tower-legacy:{HOST}:cluster-admins"
        settled(lambda: bool(read(member, "clusterrolebinding", binding)), "the binding that lets this host in")
        host_plane.kubectl("delete", "clusters.cluster.kubesphere.io", "old", "--timeout=60s")
        assert not read(member, "clusterrolebinding", binding), "it goes with the cluster"
        assert f"tower-host-{HOST}" not in marks(member)
        assert read(host_plane, "kubefedclusters", "old", "-n", SPACE), "it is somebody else's"
    finally:
        agent.stop()
        host_plane.kubectl("delete", "kubefedcluster", "old", "-n", SPACE, check=False)


def test_each_right_in_the_namespace_of_kubefed_is_used_and_none_is_missing(
    tower: TowerWorld, host_plane: ControlPlane
) -> None:
    given, refused = set(), set()
    for line in whole_lines(host_plane.audit_log):
        event = json.loads(line)
        reference = event.get("objectRef")
        if event["user"].get("username") != ACCOUNT or reference is None or event["stage"] == "RequestReceived":
            continue
        if reference.get("namespace") == SPACE:
            rule = (reference.get("apiGroup", ""), reference["resource"], event["verb"])
            (refused if event.get("responseStatus", {}).get("code") == 403 else given).add(rule)
    (role,) = [
        each for each in yaml.safe_load_all((DEPLOY / "federation" / "rbac.yaml").read_text()) if each["kind"] == "Role"
    ]
    granted = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert not refused, "rbac.yaml lacks these"
    # An apply is a patch; that it may also make the object is the right `create`, which no audit line names.
    assert given == {rule for rule in granted if rule[2] != "create"}
