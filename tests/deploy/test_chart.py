"""The Helm chart: the objects of deploy/base, taken by a real apiserver, and words for whoever sets a wrong value."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.rendering import CHART, DEPLOY, Objects, Refused, helm, render
from tests.lab import kubefed
from tests.lab.controlplane import ControlPlane
from tower_server.main import load

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
OPERATOR = "monitoring.coreos.com/v1"  # kinds of the Prometheus operator, which no bare apiserver knows
HELMS = ("app.kubernetes.io/managed-by", "app.kubernetes.io/instance", "helm.sh/chart")
EVERY_VALUE = {
    "publicUrl": "wss://tower.example.com:8443",
    "image": {
        "repository": "registry.example.com/tower-tunnel",
        "digest": f"sha256:{'a' * 64}",
        "pullPolicy": "Always",
    },
    "imagePullSecrets": [{"name": "pull"}],
    "replicas": 3,
    "service": {"type": "NodePort", "nodePort": 30443, "annotations": {"example.com/pool": "edge"}},
    "ports": {"range": "7000-7999", "kubesphereOffset": 20000},
    "config": {"drain": "20s", "callers": {"hold": "5s"}},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"operator": "Exists"}],
    "priorityClassName": "system-cluster-critical",
    "podAnnotations": {"example.com/team": "edge"},
    "federation": {"enabled": True},
}


def canonical(objects: Objects) -> dict[tuple[str, str, str], dict[str, Any]]:
    """By kind, namespace and name, without what Helm or kustomize put there for themselves."""
    text = json.dumps(objects)
    (hashed,) = [each["metadata"]["name"] for each in objects if each["kind"] == "ConfigMap"]
    text = text.replace(f'"{hashed}"', '"tower-server"')
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for each in json.loads(text):
        labels = each["metadata"].get("labels", {})
        for label in HELMS:
            labels.pop(label, None)
        if each["kind"] == "Deployment":
            template = each["spec"]["template"]["metadata"]
            assert template.pop("annotations", {}).keys() <= {"checksum/config"}
        if each["kind"] == "ConfigMap":
            each["data"] = {file: yaml.safe_load(said) for file, said in each["data"].items()}
        found[each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]] = each
    return found


def one(objects: Objects, kind: str, name: str = "tower-server") -> dict[str, Any]:
    (found,) = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


@pytest.mark.parametrize(
    ("folders", "namespace", "values"),
    [
        (["base"], "tower-system", {}),
        (["base", "federation"], "tower-system", {"federation": {"enabled": True}}),
        (
            ["overlays/kubesphere"],
            "kubesphere-system",
            {"monitoring": {"serviceMonitor": True, "rules": True}, "kubesphere": {"enabled": True}},
        ),
    ],
)
def test_the_chart_makes_the_same_objects_as_kustomize(
    host_plane: ControlPlane, folders: list[str], namespace: str, values: dict[str, Any]
) -> None:
    by_helm = canonical(helm(values, namespace=namespace).objects)
    by_kustomize = canonical([each for folder in folders for each in render(host_plane, folder)])
    assert by_helm.keys() == by_kustomize.keys()
    for key, wanted in by_kustomize.items():
        assert by_helm[key] == wanted, key


def test_its_crds_are_those_of_deploy() -> None:
    shipped = [yaml.safe_load(file.read_text()) for file in sorted((DEPLOY / "crds").glob("*.yaml"))]
    made = sorted(helm({}).crds, key=lambda each: str(each["metadata"]["name"]))
    assert made == sorted(shipped, key=lambda each: str(each["metadata"]["name"]))


def test_a_real_apiserver_holds_all_of_it_and_a_second_time_nothing_changes(host_plane: ControlPlane) -> None:
    namespace = "tower-chart"
    meta = {"name": namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
    host_plane.install([{"apiVersion": "v1", "kind": "Namespace", "metadata": meta}])
    kubefed.install(host_plane)
    for values in ({}, EVERY_VALUE):
        release = helm(values, namespace=namespace)
        for crd in release.crds:
            host_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(crd).encode())
        text = yaml.safe_dump_all(release.objects).encode()
        arguments = ("apply", "--server-side", "--validate=strict", "--field-manager=helm-test", "-f", "-")
        done = host_plane.kubectl(*arguments, stdin=text, check=False)
        assert done.code == 0, done.stderr.decode()
        assert len(done.text.splitlines()) == len(release.objects)
        left = host_plane.kubectl("diff", "--server-side", "--field-manager=helm-test", "-f", "-", stdin=text)
        assert left.code == 0, left.text
    held = host_plane.kubectl("get", "deployment", "tower-server", "-n", namespace, "-o", "json").stdout
    assert json.loads(held)["spec"]["replicas"] == 3
    asked = ("auth", "can-i", "create", "kubefedclusters.core.kubefed.io", "-n", kubefed.SPACE)
    account = f"system:serviceaccount:{namespace}:tower-server"
    assert host_plane.kubectl(*asked, f"--as={account}").text == "yes"
    host_plane.kubectl("delete", "role,rolebinding", "tower-server", "-n", kubefed.SPACE)
    host_plane.kubectl("delete", "namespace", namespace, "--wait=false")
    # cluster-wide, and not this namespace's: other tests have their own
    for kind in ("clusterrolebinding", "clusterrole"):
        names = ["tower-server", "tower-server-access", *(["tower-login"] if kind == "clusterrole" else [])]
        host_plane.kubectl("delete", kind, *names, "--ignore-not-found")


def test_every_value_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = helm(EVERY_VALUE).objects
    deployment = one(objects, "Deployment")["spec"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    assert deployment["replicas"] == 3
    assert container["image"] == f"registry.example.com/tower-tunnel@sha256:{'a' * 64}"
    assert container["imagePullPolicy"] == "Always"
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["priorityClassName"] == "system-cluster-critical"
    assert deployment["template"]["metadata"]["annotations"]["example.com/team"] == "edge"
    assert one(objects, "ServiceAccount")["imagePullSecrets"] == [{"name": "pull"}]
    service = one(objects, "Service")
    assert service["metadata"]["annotations"] == {"example.com/pool": "edge"}
    assert (service["spec"]["type"], service["spec"]["ports"][0]["nodePort"]) == ("NodePort", 30443)
    opened = [
        (port["port"], port.get("endPort"))
        for rule in one(objects, "NetworkPolicy")["spec"]["ingress"]
        for port in rule["ports"]
    ]
    assert opened[1:3] == [(7000, 7999), (27000, 27999)]
    assert not [each for each in helm({"networkPolicy": {"enabled": False}}).objects if each["kind"] == "NetworkPolicy"]

    file = tmp_path / "server.yaml"
    file.write_text(one(objects, "ConfigMap")["data"]["server.yaml"])
    monkeypatch.setenv("TOWER_STORE__NAMESPACE", "elsewhere")
    config = load(file, {}).value
    assert config.public_url == "wss://tower.example.com:8443"
    assert (config.ports.range, config.ports.kubesphere_offset) == ((7000, 7999), 20000)
    assert (config.drain, config.callers.hold, config.store.kind) == (20.0, 5.0, "kubernetes")


@pytest.mark.parametrize(("listen", "port"), [({}, 8080), ({"listen": "[::]:8081"}, 8081)])
def test_where_go_agents_are_let_in_they_reach_the_port(listen: dict[str, str], port: int) -> None:
    objects = helm({"config": {"kubesphere_v1": {"enabled": True, **listen}}}).objects
    (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert {"name": "kubesphere-v1", "containerPort": port} in container["ports"]
    published = one(objects, "Service")["spec"]["ports"]
    assert {"name": "kubesphere-v1", "port": port, "targetPort": "kubesphere-v1"} in published
    assert {"port": port} in one(objects, "NetworkPolicy")["spec"]["ingress"][0]["ports"]
    assert "8080" not in json.dumps(helm({"config": {"kubesphere_v1": {"enabled": False}}}).objects)


@pytest.mark.parametrize(
    ("drain", "seconds"), [("5s", 90), ("29.5s", 90), ("2m", 180), (45, 105), ("1h1m30s", 3750), ("500ms", 90)]
)
def test_a_pod_may_take_longer_to_end_than_its_streams(drain: object, seconds: int) -> None:
    pod = one(helm({"config": {"drain": drain}}).objects, "Deployment")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == seconds


def test_a_changed_configuration_rolls_the_pods() -> None:
    def mark(values: dict[str, Any]) -> Any:
        template = one(helm(values).objects, "Deployment")["spec"]["template"]
        return template["metadata"]["annotations"]["checksum/config"]

    assert mark({}) == mark({"replicas": 3})
    assert mark({}) != mark({"config": {"drain": "9s"}})


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"replicas": 0}, "at '/replicas': minimum: got 0, want 1"),
        ({"publicURL": "wss://x"}, "additional properties 'publicURL' not allowed"),
        ({"publicUrl": "tower.example.com"}, "at '/publicUrl'"),
        ({"host": "Not A Label"}, "at '/host'"),
        ({"image": {"digest": "sha256:short"}}, "at '/image/digest'"),
        ({"service": {"type": "ExternalName"}}, "at '/service/type'"),
        ({"federation": {"enabled": "yes"}}, "at '/federation/enabled': got string, want boolean"),
        ({"config": {"public_url": "wss://x"}}, "config.public_url: use the value publicUrl"),
        ({"config": {"store": "sqlite"}}, "config.store: the chart sets it"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(values: dict[str, Any], told: str) -> None:
    with pytest.raises(Refused, match=re.escape(told)):
        helm(values)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "No member can be added yet"),
        ({"service": {"type": "LoadBalancer"}}, "kubectl -n tower-system get service tower-server"),
        ({"publicUrl": "wss://t.example.com"}, "Agents dial wss://t.example.com."),
        ({"replicas": 1}, "callers of every member are refused"),
        ({"networkPolicy": {"enabled": False}}, "reaches the ks-apiservers"),
        ({"federation": {"enabled": True}}, "Clusters with joinFederation: true are joined to kubefed"),
    ],
)
def test_the_notes_say_what_to_do_next(values: dict[str, Any], told: str) -> None:
    notes = helm(values).notes
    assert told in notes
    assert "towerctl --context CONTEXT --namespace tower-system add cluster" in notes


def test_the_schema_knows_every_value_and_no_other() -> None:
    def keys(values: Any, schema: dict[str, Any], path: str = "") -> None:
        if schema.get("additionalProperties") is not False or not isinstance(values, dict):
            return
        assert values.keys() == schema["properties"].keys() - {"global"}, path
        for key, value in values.items():
            keys(value, schema["properties"][key], f"{path}/{key}")

    keys(yaml.safe_load((CHART / "values.yaml").read_text()), json.loads((CHART / "values.schema.json").read_text()))


def test_chart_and_image_carry_the_products_version() -> None:
    from importlib.metadata import version

    meta = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert meta["version"] == meta["appVersion"] == version("tower-tunnel")
    assert one(helm({}).objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"] == (
        f"tower-tunnel:{version('tower-tunnel')}"
    )
