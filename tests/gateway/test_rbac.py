"""The policy file and RBAC say the same, and neither says more than the policy."""

from __future__ import annotations

import yaml

from gateway.policy import Policy
from gateway.rbac import policy_file, rbac_objects


def impersonated(objects: list[dict[str, object]], kind: str) -> list[str] | None:
    rules = objects[0]["rules"]
    assert isinstance(rules, list)
    found = [
        rule["resourceNames"] for rule in rules if rule["verbs"] == ["impersonate"] and rule["resources"] == [kind]
    ]
    return found[0] if found else None


def test_both_hold_the_same_names() -> None:
    policy = Policy.from_dict("east", {"users": ["tower:east:admin", "jane"], "groups": ["devs"]})
    objects = rbac_objects(policy, namespace="tower-system", service_account="tower-agent")
    rules = yaml.safe_load(policy_file([policy]))["hosts"]["east"]
    assert impersonated(objects, "users") == rules["users"] == ["jane", "tower:east:admin"]
    assert impersonated(objects, "groups") == rules["groups"] == ["devs"]
    assert objects[1]["subjects"] == [{"kind": "ServiceAccount", "name": "tower-agent", "namespace": "tower-system"}]


def test_the_file_reads_back_as_the_same_policy() -> None:
    east = Policy.default("east")
    west = Policy.from_dict(
        "west",
        {"users": ["system:admin"], "may_impersonate": ["system:admin"], "allow_system_names": True},
    )
    hosts = yaml.safe_load(policy_file([west, east]))["hosts"]
    assert {host: Policy.from_dict(host, rules) for host, rules in hosts.items()} == {"east": east, "west": west}


def test_an_empty_policy_never_becomes_all_names() -> None:
    objects = rbac_objects(Policy("east"), namespace="n", service_account="a")
    assert impersonated(objects, "users") is None
    assert impersonated(objects, "groups") is None
    assert [each["kind"] for each in objects] == ["ClusterRole", "ClusterRoleBinding"]


def test_the_admins_binding_is_an_object_of_its_own() -> None:
    *_, admins = rbac_objects(Policy.default("east"), namespace="n", service_account="a")
    assert admins["metadata"]["name"] == "tower:east:cluster-admins"
    assert admins["roleRef"]["name"] == "cluster-admin"
    assert admins["subjects"] == [
        {"kind": "Group", "name": "tower:east:cluster-admins", "apiGroup": "rbac.authorization.k8s.io"}
    ]


def test_the_agent_itself_is_no_admin() -> None:
    role, binding, *_ = rbac_objects(Policy.default("east"), namespace="n", service_account="a")
    assert binding["roleRef"]["name"] == role["metadata"]["name"] == "tower-agent:east"
    verbs = {verb for rule in role["rules"] for verb in rule["verbs"]}
    assert verbs == {"impersonate", "get", "list", "create"}
    assert not any("*" in rule.get(key, ()) for rule in role["rules"] for key in ("resources", "verbs", "apiGroups"))
