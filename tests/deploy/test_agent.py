"""The agent's manifest as a member's apiserver sees it: every field known, and admitted where the rules are strict."""

from __future__ import annotations

import json

import pytest
import yaml

from gateway.manifest import Plan, objects
from gateway.policy import Policy
from tests.lab.controlplane import ControlPlane

pytestmark = pytest.mark.cluster
NAMESPACE = "tower-agents"


@pytest.fixture
def plan(host_plane: ControlPlane) -> Plan:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    meta = {"name": NAMESPACE, "labels": labels}
    host_plane.install([{"apiVersion": "v1", "kind": "Namespace", "metadata": meta}])
    return Plan(
        Policy.default("host-a"), NAMESPACE, "tower:1", "twr1.x", services={"grafana": "grafana.monitoring:3000"}
    )


def test_the_apiserver_takes_all_of_it(host_plane: ControlPlane, plan: Plan) -> None:
    made = objects(plan)
    arguments = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
    done = host_plane.kubectl(*arguments, stdin=yaml.safe_dump_all(made).encode(), check=False)
    assert done.code == 0, done.stderr.decode()
    assert len(done.text.splitlines()) == len(made)


def test_a_namespace_that_enforces_the_restricted_standard_takes_the_pod(host_plane: ControlPlane, plan: Plan) -> None:
    (deployment,) = [each for each in objects(plan) if each["kind"] == "Deployment"]
    template = deployment["spec"]["template"]
    meta = {"name": "tried", "namespace": NAMESPACE, "labels": template["metadata"]["labels"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
    host_plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod).encode())
