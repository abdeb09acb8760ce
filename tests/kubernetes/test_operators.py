"""Operators who reach a tower in a cluster by their kubeconfig: the apiserver says who they are, RBAC what they may.

The member's control plane is the host here, since it has pods to forward to; the server runs beside it under exactly
the accounts and rules of deploy/base, and the pod's loopback is this machine's.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from certs.token import parse_token
from certs.verify import certificate_names
from tests.deploy.rendering import DEPLOY, render
from tests.lab.controlplane import ControlPlane, Done, run
from tests.lab.hostplane import crds
from tests.lab.processes import free_ports, wait_until, whole_lines
from tests.lab.world import BIN, TowerWorld

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]
NAMESPACE = "tower-system"
POD = "tower-server-0"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:tower-server"
PATIENCE = 60.0
PEOPLE = {
    "alice": ("tower-login", "tower-operator"),
    "bob": ("tower-login", "tower-viewer"),
    "carol": ("", "tower-operator"),
    "dave": ("tower-login", ""),
}


def pod(name: str, port: int) -> dict:
    container = {"name": "server", "image": "stand-in", "ports": [{"name": "operators", "containerPort": port}]}
    spec = {"nodeName": "node-1", "terminationGracePeriodSeconds": 0, "containers": [container]}
    meta = {"name": name, "namespace": NAMESPACE, "labels": {"app.kubernetes.io/name": "tower-server"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def binding(name: str, role: str, *, cluster: bool) -> dict:
    kind = "ClusterRole" if cluster else "Role"
    meta = {"name": f"{name}-{role}"} | ({} if cluster else {"namespace": NAMESPACE})
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": f"{kind}Binding",
        "metadata": meta,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": [{"kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io"}],
    }


def one_cluster(cluster: str) -> dict:
    """A Role that gives all that can be given of one cluster, as somebody would write it."""
    resources = ["clusters", *(f"clusters/{each}" for each in ("tokens", "credentials", "forward"))]
    rule = {"apiGroups": ["admin.tower.kubesphere.io"], "resources": resources, "verbs": ["*"]}
    rule["resourceNames"] = [cluster]
    meta = {"name": f"only-{cluster}", "namespace": NAMESPACE}
    return {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta, "rules": [rule]}


@pytest.fixture(scope="module")
def tower(member: ControlPlane) -> Iterator[TowerWorld]:
    from tests.lab.controlplane import NODE

    crds(member)
    member.install([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}])
    kinds = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
    rights = [each for each in render(member, "base") if each["kind"] in kinds]
    member.install(rights)
    for name, (login, role) in PEOPLE.items():
        member.install([binding(name, each, cluster=each == login) for each in (login, role) if each])
    port, replica = free_ports(2)
    body = pod(POD, port)
    body["spec"]["nodeName"] = NODE
    member.install([body])
    member.kubectl("wait", "-n", NAMESPACE, "--for=condition=Ready", f"pod/{POD}", "--timeout=60s")
    token = member.kubectl("create", "token", "tower-server", "-n", NAMESPACE, "--duration=2h").text
    store = {"kind": "kubernetes", "namespace": NAMESPACE, "kubeconfig": str(member.kubeconfig("server", token=token))}
    settings = {
        "store": store,
        "public_url": None,
        "replica": {"name": POD, "listen": f"127.0.0.1:{replica}"},
        "operators": {"listen": f"127.0.0.1:{port}"},
    }
    with (
        tempfile.TemporaryDirectory(prefix="twr") as folder,
        TowerWorld(Path(folder), host="operated", settings=settings) as world,
    ):
        yield world
    member.kubectl("delete", "members", "--all")
    member.kubectl("delete", "crd", "members.tower.kubesphere.io", "clusters.cluster.kubesphere.io")
    member.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    for each in rights:
        if each["kind"].startswith("Cluster"):
            member.kubectl("delete", each["kind"], each["metadata"]["name"])


class Person:
    """Somebody with a kubeconfig of their own, on a machine that has no admin socket."""

    def __init__(self, plane: ControlPlane, tower: TowerWorld, name: str, *, token: str | None = None) -> None:
        self.name = name
        self.kubeconfig = plane.kubeconfig(name, token=token)
        self.context = yaml.safe_load(self.kubeconfig.read_text())["current-context"]
        self.home = tower.folder / f"home-{name}"
        self.home.mkdir(exist_ok=True)

    def __call__(self, *arguments: str) -> Done:
        environment = {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.home),
            "KUBECONFIG": str(self.kubeconfig),
            "TOWER_ADMIN_SOCKET": "/nonexistent/admin.sock",
        }
        argv = [str(BIN / "towerctl"), "--context", self.context, "--timeout", "30s", *arguments]
        return run(argv, environment, deadline=120.0)

    def ok(self, *arguments: str) -> Done:
        done = self(*arguments)
        assert done.code == 0, done.stderr.decode()
        return done

    def refused(self, *arguments: str) -> str:
        done = self(*arguments)
        assert done.code != 0, done.text
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return done.stderr.decode()


def requests_of(plane: ControlPlane, name: str) -> list[dict]:
    found = json.loads(plane.kubectl("get", "csr", "-o", "json").stdout)["items"]
    return [each for each in found if each["spec"]["username"] == name]


def lines(tower: TowerWorld, event: str) -> list[dict]:
    found = []
    for line in whole_lines(tower.server.log):
        entry = json.loads(line) if line.startswith("{") else {}
        if entry.get("event") == event:
            found.append(entry)
    return found


def test_an_operator_works_by_their_own_rights_and_the_server_knows_who_it_was(
    tower: TowerWorld, member: ControlPlane
) -> None:
    alice = Person(member, tower, "alice")
    done = json.loads(alice.ok("get", "clusters", "-o", "json").stdout)
    assert done["items"] == []
    assert tower.call("POST", "/v1/clusters", {"name": "edge-1", "join": False})[0] == 201
    assert "edge-1" in alice.ok("get", "clusters").text
    alice.ok("delete", "cluster", "edge-1", "--yes")
    assert tower.call("GET", "/v1/clusters/edge-1")[0] == 404

    def deleters() -> list[str]:
        return [each["caller"] for each in lines(tower, "admin") if each["method"] == "DELETE"]

    wait_until(lambda: bool(deleters()), "a line of the log", PATIENCE)
    assert deleters() == ["alice by the apiserver"]
    (request,) = requests_of(member, "alice")  # one for all of these commands
    assert "certificate" not in request.get("status", {}), "nobody signs it"


def test_a_reader_reads_and_is_told_which_right_is_missing(tower: TowerWorld, member: ControlPlane) -> None:
    bob = Person(member, tower, "bob")
    assert json.loads(bob.ok("get", "tunnels", "-o", "json").stdout)["items"] == []
    told = bob.refused("create", "token", "edge-1")
    assert "TWR614" in told
    assert "bob may not create clusters/tokens.admin.tower.kubesphere.io named edge-1" in told
    assert "tower-operator" in told


def test_a_role_for_one_cluster_gives_no_certificate_which_every_cluster_would_take(
    tower: TowerWorld, member: ControlPlane
) -> None:
    member.install([one_cluster("edge-a"), binding("erin", "tower-login", cluster=True)])
    member.install([binding("erin", "tower-viewer", cluster=False), binding("erin", "only-edge-a", cluster=False)])
    alice, erin = Person(member, tower, "alice"), Person(member, tower, "erin")
    for name in ("edge-a", "edge-b"):
        alice.ok("add", "cluster", name, "--no-join")
    told = erin.refused("kubeconfig", "edge-a", "--embed")
    assert "TWR614" in told
    assert "erin may not create clusters/credentials.admin.tower.kubesphere.io of all clusters" in told
    assert "delete clusters.admin.tower.kubesphere.io named edge-b" in erin.refused("delete", "cluster", "edge-b", "-y")
    erin.ok("delete", "cluster", "edge-a", "-y")
    alice.ok("kubeconfig", "edge-b", "--embed")
    alice.ok("delete", "cluster", "edge-b", "-y")


def test_the_way_alone_lets_nobody_in(tower: TowerWorld, member: ControlPlane) -> None:
    told = Person(member, tower, "carol").refused("get", "clusters")
    assert "certificatesigningrequests" in told, "who cannot say who they are is nobody, whatever they may"
    told = Person(member, tower, "dave").refused("get", "clusters")
    assert "pods" in told, "who is somebody has no way without the right to it"


def test_a_token_of_the_cluster_is_as_good_as_a_certificate_and_is_not_shown_to_the_server(
    tower: TowerWorld, member: ControlPlane
) -> None:
    member.kubectl("create", "serviceaccount", "ops", "-n", NAMESPACE)
    name = f"system:serviceaccount:{NAMESPACE}:ops"
    bindings = [binding(name, "tower-login", cluster=True), binding(name, "tower-viewer", cluster=False)]
    for number, each in enumerate(bindings):
        each["metadata"]["name"] = f"ops-{number}"
    member.install(bindings)
    token = member.kubectl("create", "token", "ops", "-n", NAMESPACE, "--duration=1h").text
    Person(member, tower, "ops", token=token).ok("get", "agents")
    logged = [each["user"] for each in lines(tower, "operator-login")]
    assert name in logged
    assert token not in tower.server.log.read_text()


def test_a_denied_request_is_of_no_more_use_and_the_next_command_makes_another(
    tower: TowerWorld, member: ControlPlane
) -> None:
    alice = Person(member, tower, "alice")
    alice.ok("get", "clusters")
    before = {each["metadata"]["name"] for each in requests_of(member, "alice")}
    for name in before:
        member.kubectl("certificate", "deny", name)
    alice.ok("get", "clusters")
    after = {each["metadata"]["name"] for each in requests_of(member, "alice")}
    assert len(after - before) == 1
    member.kubectl("delete", "rolebinding", "-n", NAMESPACE, "alice-tower-operator")
    member.install([binding("alice", "tower-viewer", cluster=False)])
    assert "TWR614" in alice.refused("add", "cluster", "edge-9"), "a right that is taken away counts at once"


def test_a_wrong_context_or_namespace_is_named(tower: TowerWorld, member: ControlPlane) -> None:
    alice = Person(member, tower, "alice")
    done = run(
        [str(BIN / "towerctl"), "--context", "nope", "get", "clusters"],
        {"PATH": os.environ["PATH"], "HOME": str(alice.home), "KUBECONFIG": str(alice.kubeconfig)},
    )
    assert b"has no context 'nope'" in done.stderr
    assert alice.context.encode() in done.stderr
    told = alice.refused("get", "clusters", "--tower-namespace", "elsewhere")
    assert "elsewhere" in told


def test_a_manifest_names_the_address_that_the_host_publishes_or_says_what_is_missing(
    tower: TowerWorld, member: ControlPlane
) -> None:
    """Explicit, by a LoadBalancer, an Ingress and a NodePort; nothing wrong is printed meanwhile."""

    def url() -> str:
        printed = tower.towerctl("manifest", "placed", "--image", "x")
        (secret,) = [
            each
            for each in yaml.safe_load_all(printed.stdout)
            if each["kind"] == "Secret" and "token" in each.get("stringData", {})
        ]
        return parse_token(secret["stringData"]["token"]).url

    def missing() -> str:
        done = tower.towerctl("manifest", "placed", check=False)
        assert (done.code != 0, done.text) == (True, "")
        assert b"TWR111" in done.stderr
        return done.stderr.decode()

    def status(kind: str, name: str, *published: dict) -> None:
        body = json.dumps({"status": {"loadBalancer": {"ingress": list(published)}}})
        member.kubectl("patch", kind, name, "-n", NAMESPACE, "--subresource=status", "--type=merge", "-p", body)

    def service(kind: str) -> dict:
        (found,) = [
            each
            for each in render(member, "base")
            if each["kind"] == "Service" and each["metadata"]["name"] == "tower-server"
        ]
        found["spec"]["type"] = kind
        return found

    assert tower.call("POST", "/v1/clusters", {"name": "placed", "join": False})[0] == 201
    assert "no Service of the tower's namespace has a port named tunnel" in missing()
    member.install([service("ClusterIP")])
    assert "is of type ClusterIP" in missing()

    backend = {"service": {"name": "tower-server", "port": {"name": "tunnel"}}}
    rule = {"host": "tower.example.com", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
    spec = {"rules": [rule], "tls": [{"hosts": ["tower.example.com"], "secretName": "x"}]}
    meta = {"name": "tower", "namespace": NAMESPACE}
    member.install([{"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": meta, "spec": spec}])
    assert "no ingress controller has taken the Ingress tower" in missing()
    status("ingress", "tower", {"ip": "198.51.100.4"})
    assert url() == "wss://tower.example.com"
    member.kubectl("delete", "ingress", "tower", "-n", NAMESPACE)

    member.install([service("NodePort")])
    told = missing()
    assert "no ready node has an external address" in told or "no node is ready" in told
    member.install([service("LoadBalancer")])
    assert "has no address yet" in missing()
    status("service", "tower-server", {"ip": "203.0.113.77"})
    assert url() == "wss://203.0.113.77:8443"
    with socket.create_connection(("127.0.0.1", tower.tunnel_port), timeout=10) as raw:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(raw) as secured:
            shown = secured.getpeercert(binary_form=True)
    assert shown is not None
    assert "203.0.113.77" in certificate_names([shown]), "agents that dial it verify its name"


def test_the_server_has_used_every_right_of_this_and_lacked_none(tower: TowerWorld, member: ControlPlane) -> None:
    used, refused = set(), set()
    for line in whole_lines(member.audit_log):
        event = json.loads(line)
        reference = event.get("objectRef")
        if event["user"].get("username") != ACCOUNT or reference is None or event["stage"] == "RequestReceived":
            continue
        rule = (reference.get("apiGroup", ""), reference["resource"], event["verb"])
        (refused if event.get("responseStatus", {}).get("code") == 403 else used).add(rule)
    assert not refused
    documents = yaml.safe_load_all((DEPLOY / "base" / "rbac-access.yaml").read_text())
    granted = {
        (group, resource, verb)
        for each in documents
        for rule in each.get("rules", ())
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted - used == set(), "rbac-access.yaml grants what nobody uses"
