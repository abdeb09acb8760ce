from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab.world import TowerWorld
from tests.towerctl.kit import Shell


def documents(text: str) -> dict[str, dict[str, Any]]:
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in yaml.safe_load_all(text)}


def tokens(live: Shell, cluster: str) -> list[str]:
    items = json.loads(live.ok("get", "tokens", "--cluster", cluster, "-o", "json"))["items"]
    return [item["id"] for item in items]


def test_the_manifest_holds_a_fresh_token_of_the_cluster(live: Shell, cluster: str) -> None:
    before = tokens(live, cluster)
    ran = live("manifest", cluster, "--image", "registry.example/tower:1")
    made = documents(ran.out)
    assert made["Secret/tower-agent-lab-token"]["stringData"]["token"].startswith("twr1.")
    assert len(tokens(live, cluster)) == len(before) + 1
    container = made["Deployment/tower-agent-lab"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "registry.example/tower:1"
    assert ran.err == ""


def test_without_an_image_it_says_that_one_has_to_be_built(live: Shell, cluster: str) -> None:
    assert "build it where the member finds it" in live("manifest", cluster, "--no-token").err


@pytest.mark.parametrize("option", ["--no-token", "--rbac-only"])
def test_no_token_is_made_where_none_is_wanted(live: Shell, cluster: str, option: str) -> None:
    before = tokens(live, cluster)
    assert "twr1." not in live.ok("manifest", cluster, option)
    assert tokens(live, cluster) == before
    live("manifest", cluster, option, "--ttl", "1h").refused("--ttl is the lifetime of the token", code=2)


@pytest.mark.parametrize(
    "unused", [("--image", "x:1"), ("--replicas", "2"), ("--service", "grafana=grafana.monitoring:3000")]
)
def test_rights_alone_have_no_use_for_what_says_how_the_agent_runs(
    live: Shell, cluster: str, unused: tuple[str, str]
) -> None:
    said = f"{unused[0]} grafana" if unused[0] == "--service" else unused[0]
    live("manifest", cluster, "--rbac-only", *unused).refused("--rbac-only prints no agent", said, code=2)


def test_rights_alone_hold_the_one_that_kubesphere_needs(live: Shell, cluster: str) -> None:
    service = ("--service", "kubesphere=ks-apiserver.kubesphere-system.svc:80")
    made = documents(live.ok("manifest", cluster, "--rbac-only", *service))
    assert made["Role/tower-agent-lab-kubesphere"]["rules"][0]["resourceNames"] == ["kubesphere-config"]


def test_json_is_one_list_that_kubectl_takes(live: Shell, cluster: str) -> None:
    made = json.loads(live.ok("manifest", cluster, "--rbac-only", "-o", "json"))
    assert (made["apiVersion"], made["kind"]) == ("v1", "List")
    assert "ServiceAccount" in {item["kind"] for item in made["items"]}


def test_a_file_is_written_for_its_owner_alone(live: Shell, cluster: str, folder: Path) -> None:
    path = folder / "agent.yaml"
    assert live("manifest", cluster, "-f", str(path)).out == ""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "twr1." in path.read_text()
    live("manifest", cluster, "--no-token", "-f", str(folder / "no" / "x")).refused(
        "cannot write the manifest", "TWR104"
    )


def test_the_owners_policy_is_in_file_and_cluster_role(live: Shell, cluster: str, folder: Path) -> None:
    path = folder / "policy.yaml"
    path.write_text("hosts:\n  lab:\n    users: [alice]\n")
    made = documents(live.ok("manifest", cluster, "--no-token", "--policy", str(path)))
    rules = yaml.safe_load(made["ConfigMap/tower-agent-lab"]["data"]["policy.yaml"])["hosts"]["lab"]
    assert rules["users"] == ["alice"]
    role = made["ClusterRole/tower-agent:lab"]["rules"][0]
    assert (role["verbs"], role["resourceNames"]) == (["impersonate"], ["alice"])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        ("hosts: {other: {users: [a]}}", "has no rules for host lab"),
        ("[1, 2]", "has no rules for host lab"),
        ("{: [", "is not YAML"),
        ("hosts: {lab: {users: [2026-99-99]}}", "is not YAML"),
        ("hosts: {lab: {user: [a]}}", "unknown keys user"),
        ("hosts: {lab: {users: [system:admin]}}", "allow_system_names"),
        ("hosts: {lab: {users: ['a*']}}", "no patterns"),
    ],
)
def test_a_policy_that_cannot_be_used_is_named(
    live: Shell, cluster: str, folder: Path, content: str | None, why: str
) -> None:
    path = folder / "policy.yaml"
    if content is not None:
        path.write_text(content)
    before = tokens(live, cluster)
    live("manifest", cluster, "--policy", str(path)).refused(str(path), why, "TWR104")
    assert tokens(live, cluster) == before, "a refused call must not leave a token"


def test_declared_services_are_in_the_agents_configuration(live: Shell, cluster: str) -> None:
    printed = live.ok("manifest", cluster, "--no-token", "--service", "grafana=grafana.monitoring:3000")
    config = yaml.safe_load(documents(printed)["ConfigMap/tower-agent-lab"]["data"]["agent.yaml"])
    assert config["services"] == {"grafana": "grafana.monitoring:3000"}


@pytest.mark.parametrize(
    "service", ["grafana", "grafana=host", "G=h:1", "g=h:99999", "kubernetes=h:1", "g=:1", "g=h:0", "g=fd00::1:80"]
)
def test_a_service_that_is_none_is_a_usage_error(live: Shell, cluster: str, service: str) -> None:
    live("manifest", cluster, "--service", service).refused("--service", code=2)


@pytest.mark.slow
def test_a_server_without_public_url_explains_it_and_prints_no_wrong_one(shell: Shell, folder: Path) -> None:
    with TowerWorld(folder / "w", settings={"public_url": None}) as world:
        private = ("--socket", str(world.socket))
        shell("add", "cluster", "edge", *private).refused("public_url", "TWR111")
        assert shell("add", "cluster", "edge", "--no-join", *private).code == 0
        shell("manifest", "edge", *private).refused("public_url", "TWR111")
        shell("create", "token", "edge", *private).refused("public_url", "TWR111")


def test_an_unknown_cluster_is_refused_with_what_is_close(live: Shell, cluster: str) -> None:
    live("manifest", f"{cluster}x").refused(f"there is no cluster '{cluster}x'", f"did you mean {cluster}")
