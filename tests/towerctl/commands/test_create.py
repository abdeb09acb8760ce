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
    assert "within 5m (once" in ran.err


def test_the_shortest_lifetime_is_said_as_it_was_asked_for(live: Shell, cluster: str) -> None:
    assert "within 1s (once" in live("create", "token", cluster, "--ttl", "1s").err


def test_an_unknown_cluster_is_refused_with_what_is_close(live: Shell, cluster: str) -> None:
    live("create", "token", cluster + "x").refused(
        f"there is no cluster '{cluster}x'", f"did you mean {cluster}", "TWR603"
    )


def test_a_lifetime_beyond_the_servers_bound_is_refused(live: Shell, cluster: str) -> None:
    live("create", "token", cluster, "--ttl", "400d").refused("1s to 30d, not 400d", "TWR605")


def test_a_token_for_go_agents_is_made_and_shown_once(live: Shell, cluster: str) -> None:
    ran = live("create", "legacy-token", cluster)
    assert len(ran.out.strip()) == 64
    assert "not shown again" in ran.err
    assert ran.out.strip() not in live.ok("describe", "cluster", cluster)
    made = json.loads(live.ok("create", "legacy-token", cluster, "-o", "json"))
    assert (made["cluster"], made["dialect"]) == (cluster, "kubesphere-v1")


def test_the_token_that_go_agents_have_is_taken_over_from_a_file(live: Shell, cluster: str) -> None:
    file = live.home / "token"
    file.write_text("ab" * 32 + "\n")
    ran = live("create", "legacy-token", cluster, "--token-file", str(file))
    assert ran.code == 0
    assert "abab" not in ran.out + ran.err
    file.write_text("too short")
    live("create", "legacy-token", cluster, "--token-file", str(file)).refused("32 to 512", "TWR605")
    file.write_bytes(b"\xff" * 64)
    live("create", "legacy-token", cluster, "--token-file", str(file)).refused(f"the token file {file} is not text")
    live("create", "legacy-token", cluster, "--token-file", str(file.parent)).refused("cannot read", "Is a directory")


def test_a_window_says_until_when_it_is_open(live: Shell, cluster: str) -> None:
    assert f"register for {cluster} until 20" in live.ok("create", "legacy-window", cluster, "--ttl", "10m")
    live("create", "legacy-window", cluster, "--ttl", "40d").refused("ttl", "TWR605")
    live("create", "legacy-window", cluster + "x").refused(f"did you mean {cluster}", "TWR603")


def test_a_token_whose_secret_is_shown_nowhere_says_so(live: Shell, cluster: str) -> None:
    ran = live("create", "token", cluster, "-o", "name")
    assert ran.out.startswith("token/")
    assert "was not shown" in ran.err
