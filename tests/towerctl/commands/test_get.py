from __future__ import annotations

import json

import pytest
import yaml

from tests.towerctl.kit import Shell

KINDS = ["clusters", "tunnels", "streams", "agents", "tokens"]


def test_the_table_has_a_line_a_cluster_under_its_columns(live: Shell, cluster: str) -> None:
    lines = live.ok("get", "clusters").splitlines()
    assert lines[0].split() == ["NAME", "READY", "REASON", "TUNNELS", "RTT", "VERSION", "HEARTBEAT", "AGE"]
    (line,) = [line for line in lines if line.startswith(cluster)]
    assert line.split()[1:4] == ["Unknown", "NeverConnected", "0/0"] or line.split()[2] == "NeverConnected"


def test_headers_can_be_left_out(live: Shell, cluster: str) -> None:
    assert live.ok("get", "clusters", cluster, "--no-headers").startswith(cluster)


def test_wide_adds_port_and_address(live: Shell, cluster: str) -> None:
    head, line = live.ok("get", "clusters", cluster, "-o", "wide").splitlines()
    ports = json.loads(live.ok("get", "clusters", cluster, "-o", "json"))["ports"]
    assert head.split()[6:] == ["PORT", "ENDPOINT", "DIALECT", "AGENT", "CODE", "CERT-EXPIRES", "HEARTBEAT", "AGE"]
    assert line.split()[6:8] == [str(ports["kubernetes"]), f"https://127.0.0.1:{ports['kubernetes']}"]


def test_json_yaml_and_names_say_the_same(live: Shell, cluster: str) -> None:
    as_json = json.loads(live.ok("get", "clusters", cluster, "-o", "json"))
    as_yaml = yaml.safe_load(live.ok("get", "clusters", cluster, "-o", "yaml"))
    assert as_json["uid"] == as_yaml["uid"]
    assert as_json["kind"] == "Cluster"
    assert live.ok("get", "clusters", cluster, "-o", "name") == f"cluster/{cluster}\n"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_list_with_a_kind_of_its_own(live: Shell, kind: str) -> None:
    listing = json.loads(live.ok("get", kind, "-o", "json"))
    assert listing["kind"] == kind[:-1].capitalize() + "List"
    assert listing["apiVersion"] == "tower/v1"


@pytest.mark.parametrize("kind", KINDS)
def test_the_singular_is_understood(live: Shell, kind: str) -> None:
    assert live("get", kind[:-1]).code == 0


def test_nothing_found_is_said_on_standard_error_and_is_fine(live: Shell, cluster: str) -> None:
    ran = live("get", "streams", "--cluster", cluster)
    assert (ran.code, ran.out, ran.err) == (0, "", "No streams found.\n")


def test_an_unknown_cluster_is_refused_with_what_is_close(live: Shell, cluster: str) -> None:
    live("get", "clusters", f"{cluster}0").refused(f"there is no cluster '{cluster}0'", f"did you mean {cluster}")


def test_a_list_of_an_unknown_cluster_is_refused_and_not_empty(live: Shell) -> None:
    live("get", "tunnels", "--cluster", "nowhere").refused("there is no cluster 'nowhere'", "TWR603")


@pytest.mark.parametrize("kind", ["tunnels", "streams", "agents", "tokens"])
def test_an_unknown_object_is_refused(live: Shell, kind: str) -> None:
    live("get", kind, "nothing").refused(f"there is no {kind[:-1]} 'nothing'", "TWR603")


def test_an_unknown_kind_or_format_is_a_usage_error(live: Shell) -> None:
    live("get", "clouds").refused("No such command 'clouds'", code=2)
    live("get", "clusters", "-o", "xml").refused("table", "wide", "json", "yaml", "name", code=2)
