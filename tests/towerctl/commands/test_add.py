from __future__ import annotations

import json
import re

import pytest

from tests.towerctl.kit import Shell


@pytest.fixture
def name(live: Shell) -> str:
    return "added"


@pytest.fixture(autouse=True)
def deleted(live: Shell):
    yield
    for left in live("get", "clusters", "-o", "name").out.split():
        if left.startswith("cluster/added"):
            live("delete", "cluster", left.removeprefix("cluster/"), "--yes")


def test_standard_output_is_the_one_command_and_nothing_else(live: Shell, name: str) -> None:
    ran = live("add", "cluster", name)
    assert ran.code == 0
    assert "tower-agent" in ran.out
    assert "twr1." in ran.out
    assert f"Cluster {name} added" in ran.err
    assert "not shown again" in ran.err


def test_the_token_reaches_the_agent_by_standard_input_and_never_by_its_arguments(live: Shell, name: str) -> None:
    command = live.ok("add", "cluster", name)
    (line,) = [line for line in command.splitlines() if "tower-agent" in line]
    arguments = line.split("tower-agent", 1)[1].split("<<", 1)[0]
    assert "twr1." not in arguments


def test_json_carries_cluster_token_and_command(live: Shell, name: str) -> None:
    added = json.loads(live.ok("add", "cluster", name, "-o", "json"))
    assert (added["kind"], added["name"]) == ("Cluster", name)
    assert added["join"]["token"].startswith("twr1.")
    assert added["join"]["token"] in added["join"]["command"]


def test_lifetime_and_uses_of_the_token_can_be_chosen(live: Shell, name: str) -> None:
    ran = live("add", "cluster", name, "--ttl", "10m", "--uses", "3")
    assert re.search(r"within (9m59s|10m) \(3 times", ran.err)


def test_the_record_alone_needs_no_token(live: Shell, name: str) -> None:
    ran = live("add", "cluster", name, "--no-join")
    assert (ran.code, ran.out) == (0, "")
    assert json.loads(live.ok("get", "tokens", "--cluster", name, "-o", "json"))["items"] == []


def test_names_alone_leave_no_token_behind_that_nobody_has_seen(live: Shell, name: str) -> None:
    ran = live("add", "cluster", name, "-o", "name")
    assert (ran.code, ran.out) == (0, f"cluster/{name}\n")
    assert f"towerctl create token {name}" in ran.err
    assert live.ok("get", "tokens", "--cluster", name) == ""


def test_no_token_cannot_have_a_lifetime(live: Shell, name: str) -> None:
    live("add", "cluster", name, "--no-join", "--ttl", "1h").refused("--no-join", code=2)


def test_a_name_that_is_taken_is_refused(live: Shell, name: str) -> None:
    live.ok("add", "cluster", name)
    live("add", "cluster", name).refused(name, "TWR604")


@pytest.mark.parametrize("shared", ["localhost", "127.0.0.1", "*.example.com", "other.members.tower", "a b"])
def test_a_serving_name_that_two_clusters_could_share_is_refused(live: Shell, name: str, shared: str) -> None:
    live("add", "cluster", name, "--serving-name", shared).refused(shared)
    assert f"cluster/{name}" not in live.ok("get", "clusters", "-o", "name").split()


def test_uses_below_one_are_a_usage_error(live: Shell, name: str) -> None:
    live("add", "cluster", name, "--uses", "0").refused("--uses", code=2)


def test_waiting_says_for_what_and_how_far_it_came(live: Shell, name: str) -> None:
    ran = live("add", "cluster", name, "--wait", "200ms")
    assert ran.code == 1
    assert f"Waiting up to 200ms for cluster {name} to be Ready" in ran.err
    assert "was not Ready within 200ms: NeverConnected" in ran.err
    assert "TWR608" in ran.err
