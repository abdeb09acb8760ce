from __future__ import annotations

import json

from tests.towerctl.kit import Shell


def test_a_cluster_that_never_connected_says_why_and_what_to_do(live: Shell, cluster: str) -> None:
    told = live.ok("describe", "cluster", cluster)
    for part in (
        f"Name:         {cluster}",
        "NeverConnected",
        "TWR200",
        "Next:",
        "Conditions:",
        "AgentAvailable",
        "Tunnels:",
    ):
        assert part in told, told


def test_tokens_of_the_cluster_are_listed_without_their_secrets(live: Shell, cluster: str) -> None:
    made = json.loads(live.ok("create", "token", cluster, "-o", "json"))
    told = live.ok("describe", "cluster", cluster)
    assert made["id"] in told
    assert made["token"] not in told


def test_json_is_the_objects_own(live: Shell, cluster: str) -> None:
    described = json.loads(live.ok("describe", "cluster", cluster, "-o", "json"))
    assert described["uid"] == json.loads(live.ok("get", "clusters", cluster, "-o", "json"))["uid"]


def test_an_unknown_cluster_or_agent_is_refused(live: Shell, cluster: str) -> None:
    live("describe", "cluster", f"{cluster}y").refused(f"there is no cluster '{cluster}y'", "did you mean", "TWR603")
    live("describe", "agent", "nobody").refused("there is no agent 'nobody'", "TWR603")
    live("describe", "agent", "nobody", "--cluster", "UPPER").refused("cannot be the name of a cluster", code=2)


def test_what_has_no_certificate_has_none_that_expires(live: Shell, cluster: str) -> None:
    lines = live.ok("describe", "cluster", cluster).splitlines()
    assert [line.split() for line in lines if line.startswith("Certificate")] == [["Certificate:", "-"]]
