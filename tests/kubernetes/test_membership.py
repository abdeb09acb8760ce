"""A member that is looked into before it is handed on, and is in kubefed's federation for as long as it is asked for.

The host, the member and the tower between them are real; another host in the same member is a mark that it left.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.rendering import DEPLOY, render
from tests.lab import kubefed
from tests.lab.controlplane import ControlPlane, run
from tests.lab.hostplane import crds
from tests.lab.kubefed import SPACE
from tests.lab.processes import wait_until
from tests.lab.world import TowerWorld

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]
HOST = "federated"
NAMESPACE = "tower-federated"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:tower-server"
PATIENCE = 60.0
ERRANDS = "tower_server.controller.errands"
SOON = {f"{ERRANDS}.REFUSED_AGAIN": 1.0, f"{ERRANDS}.FEDERATED_AGAIN": 2.0, f"{ERRANDS}.FAREWELL_DEADLINE": 5.0}
OTHER = {"host": "elsewhere", "uid": "u-elsewhere", "cluster": "berlin"}


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
    settings = {"store": store, "callers": {"address": "127.0.0.1", "cluster_address": "10.78.0.1"}}
    with (
        tempfile.TemporaryDirectory(prefix="twr") as folder,
        TowerWorld(Path(folder), host=HOST, settings=settings, constants=SOON) as world,
        kubefed.TokenController(member),
    ):
        for name in ("edge", "again", "gone"):
            world.join(name, member)
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
    return found


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
    until(host_plane, "edge", "FederationReady", "True", "Joined")
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
    until(host_plane, "edge", "FederationReady", "True", "Joined")
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
    until(host_plane, "edge", "FederationReady", "True", "Joined")
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
    until(host_plane, "gone", "FederationReady", "True", "Joined")
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


def test_each_right_in_the_namespace_of_kubefed_is_used_and_none_is_missing(
    tower: TowerWorld, host_plane: ControlPlane
) -> None:
    given, refused = set(), set()
    for line in host_plane.audit_log.read_text().splitlines():
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
