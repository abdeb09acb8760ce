"""What is deployed: rendered, taken by a real apiserver, right about rights, alerts and configuration."""

from __future__ import annotations

import json
import re
from typing import Any

import click
import pytest
import yaml

from daemon.metrics import AgentMetrics, ServerMetrics
from tests.deploy.rendering import DEPLOY, namespaces, render
from tests.lab.controlplane import ControlPlane
from towerctl.root import cli as towerctl

RENDERED = ["base", "overlays/public", "overlays/kubesphere"]
OPERATOR = "monitoring.coreos.com/v1"  # kinds of the Prometheus operator, which no bare apiserver knows


def one(objects: list[dict[str, Any]], kind: str, name: str = "tower-server") -> dict[str, Any]:
    (found,) = [each for each in objects if each["kind"] == kind and each["metadata"]["name"].startswith(name)]
    return found


@pytest.mark.cluster
@pytest.mark.parametrize("folder", RENDERED)
def test_the_apiserver_takes_all_of_it_and_every_field_is_known_to_it(host_plane: ControlPlane, folder: str) -> None:
    namespaces(host_plane)
    objects = [each for each in render(host_plane, folder) if each["apiVersion"] != OPERATOR]
    text = yaml.safe_dump_all(objects).encode()
    done = host_plane.kubectl(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text, check=False
    )
    assert done.code == 0, done.stderr.decode()
    assert len(done.text.splitlines()) == len(objects)


@pytest.mark.cluster
def test_a_namespace_that_enforces_the_restricted_standard_takes_the_pod(host_plane: ControlPlane) -> None:
    namespaces(host_plane)
    template = one(render(host_plane, "base"), "Deployment")["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": template["spec"]}
    pod["metadata"] = {"name": "tried", "namespace": "tower-system", "labels": template["metadata"]["labels"]}
    host_plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod).encode())
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    refused = host_plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod).encode(), check=False)
    assert b"PodSecurity" in refused.stderr


@pytest.mark.cluster
def test_a_changed_configuration_rolls_the_pods_and_selectors_meet_them(host_plane: ControlPlane) -> None:
    objects = render(host_plane, "base")
    template = one(objects, "Deployment")["spec"]["template"]
    config = one(objects, "ConfigMap")["metadata"]["name"]
    assert re.fullmatch(r"tower-server-[a-z0-9]+", config)
    assert config in json.dumps(template["spec"]["volumes"])
    labels = template["metadata"]["labels"].items()
    for service in [each for each in objects if each["kind"] == "Service"]:
        assert service["spec"]["selector"].items() <= labels
        names = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    assert one(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items() <= labels
    assert one(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= labels


@pytest.mark.parametrize("file", ["base/server.yaml", "overlays/public/server.yaml"])
def test_the_server_takes_the_configuration(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tower_server.main import load

    monkeypatch.setenv("TOWER_STORE__NAMESPACE", "elsewhere")
    config = load(DEPLOY / file, {}).value
    assert (config.store.kind, config.store.namespace) == ("kubernetes", "elsewhere")
    assert config.health_address == ":9443"
    assert (config.public_url is not None) == ("public" in file)


def test_the_network_policy_opens_the_ports_that_the_defaults_give_out() -> None:
    from protocol import defaults

    policy = yaml.safe_load((DEPLOY / "base" / "networkpolicy.yaml").read_text())
    opened = [(port["port"], port.get("endPort")) for rule in policy["spec"]["ingress"] for port in rule["ports"]]
    first, last = defaults.PORT_RANGE
    offset = defaults.KUBESPHERE_PORT_OFFSET
    callers = [(defaults.TUNNEL_PORT, None), (first, last), (first + offset, last + offset)]
    assert opened == [*callers, (defaults.REPLICA_PORT, None), (9443, None)]
    assert "from" in policy["spec"]["ingress"][1], "what does not authenticate its callers is not for everybody"
    assert policy["spec"]["ingress"][2]["from"] == [{"podSelector": policy["spec"]["podSelector"]}]


TOLD_BY_EACH = {
    "tower_cluster_ready",
    "tower_cluster_not_ready",
    "tower_cluster_transitions_total",
    "tower_tunnels_expected",
}
"""What every server of a host says of the same cluster: added up, two servers would make two clusters of one."""


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((DEPLOY / "components" / "monitoring" / "prometheusrule.yaml").read_text())
    return [rule for group in document["spec"]["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_figures_that_exist_and_says_what_to_do(rule: dict[str, Any]) -> None:
    rendered = ServerMetrics(version="1").render() + AgentMetrics(version="1").render()
    known = set(re.findall(r"^# TYPE (tower_\w+) ", rendered.decode(), re.MULTILINE))
    asked = set(re.findall(r"\btower_\w+", rule["expr"]))
    assert asked
    assert {name.removesuffix("_bucket") for name in asked} <= known
    for figure in asked & TOLD_BY_EACH:
        alike = rf"max by \(member_cluster(, reason)?\) \((sum without \(to\) \(increase\()?{figure}\b"
        assert len(re.findall(alike, rule["expr"])) == len(re.findall(rf"{figure}\b", rule["expr"])), figure
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert "-n " not in rule["annotations"]["next"], "it is one file for every namespace"
    assert set(rule["annotations"]) == {"summary", "description", "next"}
    for called in re.findall(r"towerctl ([a-z]+)", rule["annotations"]["next"]):
        assert towerctl.get_command(click.Context(towerctl), called) is not None
