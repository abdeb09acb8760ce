from __future__ import annotations

import json

from tests.towerctl.kit import Shell


def test_a_new_token_is_shown_once_with_its_command(live: Shell, cluster: str) -> None:
    made = json.loads(live.ok("create", "token", cluster, "-o", "json"))
    assert made["token"] in made["command"]
    listed = live.ok("get", "tokens", made["id"], "-o", "json")
    assert json.loads(listed)["state"] == "Valid"
    assert made["token"] not in listed


def test_the_command_alone_is_on_standard_output(live: Shell, cluster: str) -> None:
    ran = live("create", "token", cluster, "--ttl", "5m")
    assert "tower-agent" in ran.out
    assert "within" in ran.err


def test_an_unknown_cluster_is_refused_with_what_is_close(live: Shell, cluster: str) -> None:
    live("create", "token", cluster + "x").refused(
        f"there is no cluster '{cluster}x'", f"did you mean {cluster}", "TWR603"
    )


def test_a_lifetime_beyond_the_servers_bound_is_refused(live: Shell, cluster: str) -> None:
    live("create", "token", cluster, "--ttl", "400d").refused("30 days", "TWR605")
