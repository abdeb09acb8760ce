"""The manifest as the member sees it: what it may do, where its secrets lie, and that two hosts never meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from gateway.manifest import Plan, objects, rights
from gateway.policy import Policy

Object = dict[str, Any]


def plan(host: str = "host-a", **changes: Any) -> Plan:
    given = {"policy": Policy.default(host), "namespace": "tower-system", "image": "tower:1", "token": "twr1.secret"}
    return Plan(**(given | changes))


def of_kind(made: list[Object], kind: str) -> list[Object]:
    return [each for each in made if each["kind"] == kind]


def pod(made: list[Object]) -> Object:
    (deployment,) = of_kind(made, "Deployment")
    spec: Object = deployment["spec"]["template"]["spec"]
    return spec


def test_the_agent_may_touch_its_identity_secret_and_no_other() -> None:
    (role,) = of_kind(objects(plan()), "Role")
    assert role["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["secrets"],
            "resourceNames": ["tower-agent-host-a-identity"],
            "verbs": ["get", "update", "patch"],
        }
    ]


def test_the_identity_secret_is_empty_so_that_applying_again_keeps_what_the_agent_wrote() -> None:
    identity, token = of_kind(objects(plan()), "Secret")
    assert identity["metadata"]["name"] == "tower-agent-host-a-identity"
    assert "data" not in identity
    assert "stringData" not in identity
    assert token["stringData"] == {"token": "twr1.secret"}


def test_the_token_stands_in_its_secret_and_nowhere_else() -> None:
    made = [each for each in objects(plan()) if each["metadata"]["name"] != "tower-agent-host-a-token"]
    assert "twr1.secret" not in yaml.safe_dump(made)


def test_nobody_but_the_agent_reads_the_mounted_token() -> None:
    spec = pod(objects(plan()))
    (volume,) = [each for each in spec["volumes"] if each["name"] == "token"]
    assert volume["secret"]["defaultMode"] == 0o440
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsUser"]


def test_without_a_token_nothing_asks_for_one() -> None:
    made = objects(plan(token=None))
    assert [each["metadata"]["name"] for each in of_kind(made, "Secret")] == ["tower-agent-host-a-identity"]
    (config,) = of_kind(made, "ConfigMap")
    assert "token_file" not in yaml.safe_load(config["data"]["agent.yaml"])
    assert "token" not in {volume["name"] for volume in pod(made)["volumes"]}


def test_the_agents_configuration_is_one_that_the_agent_reads() -> None:
    from tower_agent.config import AgentConfig

    (config,) = of_kind(objects(plan(services={"grafana": "grafana.monitoring:3000"})), "ConfigMap")
    read = AgentConfig.model_validate(yaml.safe_load(config["data"]["agent.yaml"]))
    assert read.identity_secret == "tower-system/tower-agent-host-a-identity"
    assert read.services["grafana"].address == "grafana.monitoring:3000"
    assert str(read.token_file) == "/var/run/secrets/tower/token"


@pytest.mark.parametrize("rendered", [objects, rights])
def test_an_agent_of_a_member_with_kubesphere_may_read_its_configuration_and_no_other(
    rendered: Callable[[Plan], list[Object]],
) -> None:
    made = rendered(plan(services={"kubesphere": "ks-apiserver.kubesphere-system.svc:80"}))
    (role,) = [each for each in of_kind(made, "Role") if each["metadata"]["namespace"] == "kubesphere-system"]
    assert (role["metadata"]["namespace"], role["metadata"]["name"]) == (
        "kubesphere-system",
        "tower-agent-host-a-kubesphere",
    )
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["kubesphere-config"], "verbs": ["get"]}
    ]
    (binding,) = [each for each in of_kind(made, "RoleBinding") if each["metadata"]["namespace"] == "kubesphere-system"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": "tower-agent-host-a", "namespace": "tower-system"}
    ]


def test_policy_file_and_cluster_role_hold_the_same_names() -> None:
    made = objects(plan(policy=Policy.from_dict("host-a", {"users": ["alice"], "groups": ["dev"]})))
    (config,) = of_kind(made, "ConfigMap")
    rules = yaml.safe_load(config["data"]["policy.yaml"])["hosts"]["host-a"]
    (role,) = of_kind(made, "ClusterRole")
    impersonated = {rule["resources"][0]: rule["resourceNames"] for rule in role["rules"] if "resourceNames" in rule}
    assert impersonated["users"] == rules["users"] == ["alice"]
    assert impersonated["groups"] == rules["groups"] == ["dev"]


def test_the_agent_is_no_cluster_admin() -> None:
    for binding in of_kind(objects(plan()), "ClusterRoleBinding"):
        if binding["roleRef"]["name"] == "cluster-admin":
            assert [subject["kind"] for subject in binding["subjects"]] == ["Group"]


def test_two_hosts_share_no_object_but_the_namespace() -> None:
    def keys(made: list[Object]) -> set[tuple[str, str]]:
        return {(each["kind"], each["metadata"]["name"]) for each in made}

    shared = keys(objects(plan("host-a"))) & keys(objects(plan("host-b")))
    assert shared == {("Namespace", "tower-system")}


def test_the_pod_meets_the_restricted_pod_security_standard() -> None:
    spec = pod(objects(plan()))
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_losing_the_link_never_restarts_the_pod() -> None:
    (container,) = pod(objects(plan()))["containers"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_two_agents_run_and_rather_not_on_one_node() -> None:
    made = objects(plan())
    (deployment,) = of_kind(made, "Deployment")
    assert deployment["spec"]["replicas"] == 2
    (term,) = pod(made)["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    selector = term["podAffinityTerm"]["labelSelector"]["matchLabels"]
    assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def test_nothing_reaches_an_agent_but_for_its_health() -> None:
    made = objects(plan())
    (policy,) = of_kind(made, "NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    (rule,) = policy["spec"]["ingress"]
    (container,) = pod(made)["containers"]
    assert [port["port"] for port in rule["ports"]] == [port["containerPort"] for port in container["ports"]]


def test_rights_alone_run_nothing_and_hold_no_secret() -> None:
    assert {each["kind"] for each in rights(plan())} == {
        "Namespace",
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
    }
