"""A member moves from Go Tower to here by the commands of docs/MIGRATION.md, word for word, in both orders.

Real are both clusters' apiservers, the towers, the agents and the callers; Go Tower's two ends are our Go peers.
"""

from __future__ import annotations

import base64
import json
import os
import re
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.interop.conftest import PROGRAMS
from tests.interop.peers import TOKEN, VINTAGES, Account, GoAgent, GoProxy, make_account
from tests.interop.test_go_peers import listening
from tests.kubernetes.conftest import view
from tests.kubernetes.test_membership import SOON, clear, cluster, read, said
from tests.kubernetes.views import View
from tests.lab import assets, kubefed
from tests.lab.controlplane import NODE, ControlPlane, run
from tests.lab.hostplane import ROOT, crds
from tests.lab.kubefed import SPACE
from tests.lab.processes import ADOPTED, Child, free_ports, wait_until
from tests.lab.world import TowerWorld

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]
EDGE = "edge-1"
HOST = "moving"
NAMESPACE = "tower-moving"
PATIENCE = 120.0
COMES_AGAIN = 240.0  # a Go agent that finds nobody waits two minutes in the end, and once more where it is too early
GO_POD = "cluster-agent"
ADDRESS = "ws://tower.example.com:8080"

SERVICES = list(yaml.safe_load_all((ROOT / "deploy" / "base" / "service.yaml").read_text()))
TEXT = (ROOT / "docs" / "MIGRATION.md").read_text()
BLOCKS = [
    textwrap.dedent(each).strip() for each in re.findall(r"^ *```sh\n(.*?)^ *```", TEXT, re.MULTILINE | re.DOTALL)
]
ADD, DIALECT, MERGE = "towerctl add cluster", "towerctl get clusters", "towerctl kubeconfig edge-1 --merge"
WINDOW, TOKENS, RIGHTS = "towerctl create legacy-window", "towerctl manifest", "kubectl apply"
AGENT, AWAY = "tower-agent run  ", "kubectl -n kubesphere-system delete deployment"
CLOSE, FORGET, PATCH = "towerctl delete legacy-window", "towerctl delete legacy-token", "kubectl patch clusters"
OVER = "kubectl -n kubesphere-system scale deployment tower"
TAKE, BY_DIALECT, BUNDLE = "(umask 077", "tower-agent run --dialect", "ca=$(towerctl"
ON_KUBERNETES = (OVER, DIALECT, MERGE, WINDOW, TOKENS, RIGHTS, AGENT, AWAY, CLOSE, PATCH)
MEMBER_FIRST = (TAKE, BY_DIALECT, ADD, BUNDLE, TOKENS, RIGHTS, AGENT, FORGET)


def test_no_command_of_the_document_is_left_out() -> None:
    for block in BLOCKS:
        named = {step for step in (*ON_KUBERNETES, *MEMBER_FIRST) if block.startswith(step)}
        assert len(named) == 1, block


class Walk:
    """The steps of one order, each run where the document says."""

    def __init__(self, tower: TowerWorld, host: ControlPlane, member: ControlPlane, steps: tuple[str, ...]) -> None:
        self.left = list(steps)
        self._tower = tower
        programs = member.programs["kubectl"].parent
        common = tower.environment()
        common["PATH"] = f"{programs}{os.pathsep}{common['PATH']}"
        self.merged = tower.folder / "home" / "config"
        self.host = common | {"KUBECONFIG": str(host.admin_kubeconfig)}
        member_only = {"KUBECONFIG": str(member.admin_kubeconfig), "TOWER_KUBECONFIG": str(member.admin_kubeconfig)}
        self.member = {key: value for key, value in common.items() if not key.startswith("TOWER_")} | member_only

    def _next(self, step: str) -> str:
        assert self.left.pop(0) == step
        (block,) = [each for each in BLOCKS if each.startswith(step)]
        return block

    def run(self, step: str, **environment: str) -> str:
        """What it printed."""
        return self.bash(self._next(step), **environment)

    def bash(self, script: str, **environment: str) -> str:
        inside = self.member if "in the member" in script or "tower-agent" in script else self.host
        done = run(["bash", "-euo", "pipefail", "-c", f"cd {self._tower.folder}; {script}"], inside | environment)
        assert done.code == 0, (script, done)
        return done.text

    @contextmanager
    def agent(self, step: str, address: str = "", **environment: str) -> Iterator[Child]:
        """What goes on until it is stopped."""
        (health,) = free_ports(1)
        folder = self._tower.folder / f"agent-{health}"
        folder.mkdir()
        settings = {"TOWER_HEALTH_ADDRESS": f"127.0.0.1:{health}", "TOWER_STATE_DIR": self.state}
        script = f"cd {self._tower.folder}; exec {self._next(step).replace(ADDRESS, address)}"
        child = Child(
            "tower-agent", ["bash", "-c", script], log=folder / "log", env=self.member | settings | environment
        )
        ADOPTED.add(child.pid)
        try:
            yield child
        finally:
            child.stop()

    @property
    def state(self) -> str:
        return str(self._tower.folder / "native")

    def join(self) -> None:
        """What the two ends do between them, by the line that was printed."""
        line = self.run(TOKENS)
        assert re.fullmatch(r"echo '\S+' \| tower-agent join", line), line
        self.run(RIGHTS)
        self.bash(line, TOWER_STATE_DIR=self.state)


@pytest.fixture(scope="module")
def host(host_plane: ControlPlane) -> Iterator[ControlPlane]:
    assets.ensure(PROGRAMS)
    crds(host_plane)
    kubefed.install(host_plane)
    host_plane.kubectl("create", "namespace", NAMESPACE)
    yield host_plane
    host_plane.kubectl("delete", "kubefedcluster", EDGE, "-n", SPACE, "--ignore-not-found")


@contextmanager
def go_tower(folder: Path, member: ControlPlane, pod: Account | None = None) -> Iterator[tuple[GoProxy, GoAgent, View]]:
    """A member whose Go agent (a pod's, or one with a certificate) is connected to a Go proxy, and a caller of then."""
    credential = pod or member.kubeconfig(f"go-{folder.name}", groups=["system:masters"])
    with GoProxy(folder / "proxy", VINTAGES[0], name=EDGE) as proxy:
        agent = GoAgent(folder / "go", VINTAGES[0], proxy.url, credential=credential, name=EDGE)
        try:
            agent.start()
            wait_until(lambda: proxy.available and listening(proxy.kubernetes_port), "Go Tower serves", PATIENCE)
            caller = view(member, f"old-{folder.name}", proxy.kubeconfig)
            assert caller.kubectl("get", "namespaces").code == 0
            yield proxy, agent, caller
        finally:
            agent.stop()


def pod_account(folder: Path, member: ControlPlane) -> Account:
    """As the kubelet mounts it: the token ends with the pod."""
    spec = {"serviceAccountName": "caller", "nodeName": NODE, "containers": [{"name": "agent", "image": "stand-in"}]}
    spec |= {"terminationGracePeriodSeconds": 0}
    member.install(
        [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": GO_POD, "namespace": "shared"}, "spec": spec}]
    )
    bound = ("--bound-object-kind=Pod", f"--bound-object-name={GO_POD}")
    token = member.kubectl("create", "token", "caller", "-n", "shared", *bound).text
    return make_account(folder, host=member.address, port=member.ports.apiserver, ca=member.ca.pem, token=token)


def settings(proxy: GoProxy, **more: Any) -> Mapping[str, Any]:
    """In Go Tower's place: its port, and the range that it gave out."""
    first = proxy.kubernetes_port
    return {
        "kubesphere_v1": {"enabled": True, "listen": f"127.0.0.1:{proxy.port}"},
        "ports": {"range": f"{first}-{first + 20}", "bind": "127.0.0.1"},
        **more,
    }


def kubesphere_objects(host: ControlPlane, member: ControlPlane, proxy: GoProxy) -> None:
    """What KubeSphere and Go Tower have left on the host: the Cluster, and kubefed's, with the public root."""
    connection = {
        "type": "proxy",
        "token": TOKEN,
        "kubernetesAPIServerPort": proxy.kubernetes_port,
        "kubeconfig": base64.b64encode(proxy.kubeconfig.read_bytes()).decode(),
    }
    resource = {"apiVersion": "cluster.kubesphere.io/v1alpha1", "kind": "Cluster", "metadata": {"name": EDGE}}
    host.install([{**resource, "spec": {"connection": connection, "joinFederation": True}}])
    ports = [
        {"name": "kubernetes", "port": 6443, "targetPort": proxy.kubernetes_port},
        {"name": "kubesphere", "port": 80, "targetPort": proxy.kubernetes_port + 10000},
    ]
    selector = {"app": "tower", "app.kubernetes.io/name": "tower"}
    meta = {"name": f"mc-{EDGE}", "namespace": NAMESPACE}
    host.install(
        [{"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"selector": selector, "ports": ports}}]
    )
    address = read(host, "service", f"mc-{EDGE}", "-n", NAMESPACE)["spec"]["clusterIP"]
    bundle = base64.b64encode(proxy.ca.pem).decode()
    spec = {"apiEndpoint": f"https://{address}:6443", "caBundle": bundle, "secretRef": {"name": "of-kubesphere"}}
    meta = {"name": EDGE, "namespace": SPACE}
    host.install([{"apiVersion": "core.kubefed.io/v1beta1", "kind": "KubeFedCluster", "metadata": meta, "spec": spec}])


def take_away(host: ControlPlane) -> None:
    """Where no controller of a tower runs that would do it."""
    loose = ("--type=merge", "-p", '{"metadata": {"finalizers": null}}')
    host.kubectl("patch", "clusters.cluster.kubesphere.io", EDGE, *loose, check=False)
    host.kubectl("delete", "clusters.cluster.kubesphere.io", EDGE, "--ignore-not-found", "--timeout=60s")
    host.kubectl("delete", "service", f"mc-{EDGE}", "-n", NAMESPACE, "--ignore-not-found")


def bundle(host: ControlPlane) -> bytes:
    return base64.b64decode(read(host, "kubefedclusters", EDGE, "-n", SPACE)["spec"]["caBundle"])


def lead_here(walk: Walk, host: ControlPlane, namespace: Mapping[str, Any]) -> None:
    """Go Tower's Deployment and its Service as KubeSphere's installer makes them; what they are made of them."""
    selects = {"app": "tower"}
    spec = {"type": "LoadBalancer", "ports": [{"port": 8080, "targetPort": 8080}], "selector": selects}
    meta = {"name": "tower", "namespace": "kubesphere-system", "labels": selects}
    host.install([namespace, {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}])
    host.kubectl("create", "deployment", "tower", "-n", "kubesphere-system", "--image=kubesphere/tower:v0.2.1")
    walk.run(OVER)
    assert read(host, "deployment", "tower", "-n", "kubesphere-system")["spec"]["replicas"] == 0
    (ours,) = [each for each in SERVICES if each["metadata"]["name"] == "tower-server"]
    assert read(host, "service", "tower", "-n", "kubesphere-system")["spec"]["selector"] == ours["spec"]["selector"]


class Callers:
    """Everybody who had found the way while the Go agent served: they keep it."""

    def __init__(self, tower: TowerWorld, host: ControlPlane, member: ControlPlane, port: int, token: str) -> None:
        self._views = [view(member, "embedded", tower.kubeconfig(EDGE))]
        held = cluster(host, EDGE)["spec"]["connection"].get("kubeconfig", "")
        if held and base64.b64decode(held) != b"":
            self._views.append(self._local(member, tower.folder, port, yaml.safe_load(base64.b64decode(held)), "field"))
        ca = base64.b64encode(bundle(host)).decode()
        there = {"server": "", "certificate-authority-data": ca, "tls-server-name": f"{EDGE}.members.tower"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "x", "cluster": there}],
            "users": [{"name": "x", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
            "current-context": "x",
        }
        self._views.append(self._local(member, tower.folder, port, config, "kubefed"))

    @staticmethod
    def _local(member: ControlPlane, folder: Path, port: int, config: dict[str, Any], name: str) -> View:
        """Nobody routes ClusterIPs here: the Service's target is dialled."""
        config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
        path = folder / f"{name}.kubeconfig"
        path.touch(0o600)
        path.write_text(yaml.safe_dump(config))
        return view(member, name, path)

    def all_served(self) -> None:
        for each in self._views:
            done = each.kubectl("get", "configmap", "one", "-n", "shared", "-o", "jsonpath={.data.name}")
            assert done.text == "one", (each.name, done)


def dialect(tower: TowerWorld, wanted: str, agent: Child | None = None) -> None:
    """Waits until that serves; `agent`: whose, so that its end is told, and its log."""

    def looks() -> bool:
        status, found = tower.call("GET", f"/v1/clusters/{EDGE}")
        return status == 200 and (found["dialect"], found["state"]) == (wanted, "Connected")

    what = f"{EDGE} is served by {wanted}"
    if agent is None:
        wait_until(looks, what, PATIENCE)
    else:
        agent.until(looks, what, COMES_AGAIN)


def test_the_host_first_on_kubernetes(host: ControlPlane, member: ControlPlane, token: str) -> None:
    clear(member)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kubesphere-system"}}
    member.install([namespace])
    member.kubectl("create", "deployment", "cluster-agent", "-n", "kubesphere-system", "--image=kubesphere/tower")
    store = {"kind": "kubernetes", "namespace": NAMESPACE, "kubeconfig": str(host.admin_kubeconfig)}
    with tempfile.TemporaryDirectory(prefix="twr-mv-") as name, ExitStack() as stack:
        proxy, go, old = stack.enter_context(go_tower(Path(name), member))
        kubesphere_objects(host, member, proxy)
        proxy.stop()  # scaled to zero; the Go agent runs on as it is
        callers = {"address": "127.0.0.1", "cluster_address": "10.78.0.2"}
        before = read(host, "service", f"mc-{EDGE}", "-n", NAMESPACE)["spec"]["clusterIP"]
        made = TowerWorld(
            Path(name) / "t", host=HOST, settings=settings(proxy, store=store, callers=callers), constants=SOON
        )
        tower = stack.enter_context(made)
        walk = Walk(tower, host, member, ON_KUBERNETES)
        lead_here(walk, host, namespace)
        dialect(tower, "kubesphere-v1", go.child)
        port = proxy.kubernetes_port
        assert tower.cluster(EDGE)["ports"]["kubernetes"] == port
        assert "kubesphere-v1" in walk.run(DIALECT)
        refused = old.kubectl("get", "namespaces", f"--tls-server-name={EDGE}.members.tower")
        assert refused.code != 0
        assert b"certificate signed by unknown authority" in refused.stderr
        walk.run(MERGE, KUBECONFIG=str(walk.merged))
        joined = ("True", "JoinedByOther")
        wait_until(lambda: said(host, EDGE, "FederationReady")[:2] == joined, "kubefed's is looked after", PATIENCE)
        root = tower.call("GET", f"/v1/clusters/{EDGE}/connection")[1]["ca"].encode()
        assert bundle(host) == root
        go_towers = base64.b64encode(proxy.kubeconfig.read_bytes()).decode()

        def rewritten() -> bool:
            return cluster(host, EDGE)["spec"]["connection"]["kubeconfig"] != go_towers

        wait_until(rewritten, "the kubeconfig in the Cluster is the tower's", PATIENCE)
        served = Callers(tower, host, member, port, token)
        served.all_served()

        assert EDGE in walk.run(WINDOW)
        walk.join()
        stack.enter_context(walk.agent(AGENT))
        dialect(tower, "tower.v1")
        served.all_served()
        go.stop()
        go.start()  # the window is open: a pod that is replaced comes back
        served.all_served()
        binding = f"tower-legacy:{HOST}:cluster-admins"
        wait_until(lambda: not read(member, "clusterrolebinding", binding), "what the Go agent was bound by", PATIENCE)
        walk.run(AWAY)
        walk.run(CLOSE)
        go.stop()
        go.start(connected=False)
        wait_until(lambda: "TWR241" in go.said, "the Go agent is refused", PATIENCE)
        assert f"`towerctl create legacy-window {EDGE}`" in go.said
        go.stop()
        walk.run(PATCH)
        dialect(tower, "tower.v1")
        served.all_served()
        merged = "kubectl --context edge-1 get configmap one -n shared -o jsonpath={.data.name}"
        assert walk.bash(merged, KUBECONFIG=str(walk.merged)) == "one"
        after = tower.cluster(EDGE)
        assert (after["ready"], after["ports"]["kubernetes"]) == ("True", port)
        service = read(host, "service", f"mc-{EDGE}", "-n", NAMESPACE)["spec"]
        assert (service["clusterIP"], service.get("selector")) == (before, None)
        assert bundle(host) == root
        assert "token" not in cluster(host, EDGE)["spec"]["connection"]
        assert walk.left == []
        host.kubectl("delete", "clusters.cluster.kubesphere.io", EDGE, "--timeout=60s")


def test_a_go_agent_that_comes_before_its_record_waits_for_it(host: ControlPlane, member: ControlPlane) -> None:
    """At the first start beside Cluster resources agents come sooner than the controller has made all records."""
    (port,) = free_ports(1)
    store = {"kind": "kubernetes", "namespace": NAMESPACE, "kubeconfig": str(host.admin_kubeconfig)}
    dialect = {"enabled": True, "listen": f"127.0.0.1:{port}"}
    patient = {"tower_server.legacy.registrar.WAITS": PATIENCE, "tower_server.clusters.SETTLING": 600.0}
    patient["HANDSHAKE_DEADLINE"] = PATIENCE
    settings = {"kubesphere_v1": dialect, "store": store, "callers": {"address": "127.0.0.1"}}
    with tempfile.TemporaryDirectory(prefix="twr-ml-") as name, ExitStack() as stack:
        made = TowerWorld(Path(name) / "t", host=HOST, settings=settings, constants=patient)
        tower = stack.enter_context(made)
        credential = member.kubeconfig("go-late", groups=["system:masters"])
        go = GoAgent(Path(name) / "go", VINTAGES[0], f"http://127.0.0.1:{port}", credential=credential, name="late")
        stack.callback(go.stop)
        go.start(connected=False)
        wait_until(lambda: dialled(port), "the Go agent has come", PATIENCE)
        resource = {"apiVersion": "cluster.kubesphere.io/v1alpha1", "kind": "Cluster", "metadata": {"name": "late"}}
        host.install([{**resource, "spec": {"connection": {"type": "proxy", "token": TOKEN}}}])
        go.child.until(lambda: " connected" in go.said, "the Go agent is let in", PATIENCE)
        assert "refused" not in go.said
        tower.until_state("late", "Connected", deadline=PATIENCE)
        host.kubectl("delete", "clusters.cluster.kubesphere.io", "late", "--timeout=60s")


def dialled(port: int) -> bool:
    """Whether anybody holds a connection to that port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(remote.endswith(f":{port:04X}") and state == "01" for _, _, remote, state, *_ in rows)


def test_the_member_first(host: ControlPlane, member: ControlPlane, token: str) -> None:
    """Then a host with an SQLite store, where what holds the old root is patched by hand."""
    with tempfile.TemporaryDirectory(prefix="twr-mf-") as name, ExitStack() as stack:
        account = pod_account(Path(name) / "account", member)
        proxy, go, old = stack.enter_context(go_tower(Path(name), member, account))
        kubesphere_objects(host, member, proxy)
        stack.callback(take_away, host)
        callers = {"address": "127.0.0.1"}
        tower = TowerWorld(Path(name) / "t", host="moved", settings=settings(proxy, callers=callers))
        walk = Walk(tower, host, member, MEMBER_FIRST)
        walk.run(TAKE)
        taken = tower.folder / "cluster-token"
        assert (taken.read_text(), taken.stat().st_mode & 0o777) == (TOKEN, 0o600)
        go.stop()
        member.kubectl("delete", "pod", GO_POD, "-n", "shared", "--wait")
        wait_until(lambda: not proxy.available, "the host knows that it is gone", PATIENCE)
        by_token = str(member.kubeconfig("shipped", token=token))
        address = proxy.url.replace("http://", "ws://")
        ours = stack.enter_context(walk.agent(BY_DIALECT, address, TOWER_KUBECONFIG=by_token))
        ours.until(lambda: "host-registered" in ours.log.read_text(), "our agent is registered", PATIENCE)
        wait_until(lambda: old.kubectl("get", "namespaces").code == 0, "our agent serves Go Tower's callers", PATIENCE)
        proxy.stop()
        stack.enter_context(tower)
        walk.run(ADD)
        dialect(tower, "kubesphere-v1", ours)
        walk.run(BUNDLE)
        root = tower.call("GET", f"/v1/clusters/{EDGE}/connection")[1]["ca"].encode()
        assert bundle(host) == root
        port = tower.cluster(EDGE)["ports"]["kubernetes"]
        host.kubectl(
            "patch", "clusters.cluster.kubesphere.io", EDGE, "--type=merge", "-p",
            json.dumps({"spec": {"connection": {"kubeconfig": None}}}),
        )  # fmt: skip
        served = Callers(tower, host, member, port, token)
        served.all_served()
        walk.join()
        stack.enter_context(walk.agent(AGENT))
        dialect(tower, "tower.v1")
        served.all_served()
        ours.stop()
        assert "no Go agents any more" in walk.run(FORGET)
        wait_until(lambda: tower.cluster(EDGE)["tunnels"] == 1, "the agent by the dialect is gone", PATIENCE)
        served.all_served()
        assert walk.left == []
