"""What the columns say about objects of the admin API, complete ones and bare ones."""

from __future__ import annotations

from typing import Any

import pytest

from towerctl import resources
from towerctl.output import Resource
from towerctl.table import rows_of

ALL = [resources.CLUSTERS, resources.TUNNELS, resources.STREAMS, resources.AGENTS, resources.TOKENS]


def row(resource: Resource, item: dict[str, Any], output: str = "table") -> dict[str, str]:
    columns = resource.shown(output)
    (cells,) = rows_of(columns, [item])
    return dict(zip((column.header for column in columns), cells, strict=True))


def test_a_cluster_shows_readiness_reason_and_tunnels_in_relation_to_what_is_expected() -> None:
    item = {
        "name": "edge-1",
        "ready": "False",
        "state": "TunnelDown",
        "tunnels": 0,
        "tunnels_expected": 2,
        "rtt": 0.0314,
        "ports": {"kubernetes": 6012, "kubesphere": 16012},
        "member": {"version": "v1.30.4"},
    }
    shown = row(resources.CLUSTERS, item, "wide")
    assert shown["TUNNELS"] == "0/2"
    assert (shown["READY"], shown["REASON"]) == ("False", "TunnelDown")
    assert (shown["RTT"], shown["VERSION"], shown["PORT"]) == ("31ms", "v1.30.4", "6012,16012")


def test_a_cluster_that_never_connected_has_dashes_and_no_gaps() -> None:
    shown = row(resources.CLUSTERS, {"name": "new", "ready": "Unknown", "state": "NeverConnected", "member": None})
    assert shown == {
        "NAME": "new",
        "READY": "Unknown",
        "REASON": "NeverConnected",
        "TUNNELS": "0/0",
        "RTT": "-",
        "VERSION": "-",
        "HEARTBEAT": "-",
        "AGE": "-",
    }


def test_a_cluster_that_comes_and_goes_says_so_beside_how_it_is_now() -> None:
    item = {"name": "lab", "ready": "True", "state": "Connected", "flapping": "it was lost 3 times within 10 min"}
    assert row(resources.CLUSTERS, item)["REASON"] == "Connected,Flapping"


def test_the_version_of_a_clusters_agent_is_shown_beside_that_of_its_apiserver() -> None:
    item = {"name": "lab", "member": {"version": "v1.34.1", "agent_version": "0.1.0"}}
    shown = row(resources.CLUSTERS, item, "wide")
    assert (shown["VERSION"], shown["AGENT"]) == ("v1.34.1", "0.1.0")


@pytest.mark.parametrize(
    ("item", "state"),
    [({"tunnels": 1}, "Connected"), ({"tunnels": 0}, "Disconnected"), ({"tunnels": 1, "revoked": "2026"}, "Revoked")],
)
def test_an_agents_state_is_derived_from_what_is_known(item: dict[str, Any], state: str) -> None:
    assert row(resources.AGENTS, item)["STATE"] == state


def test_streams_of_two_tunnels_have_names_of_their_own() -> None:
    assert resources.STREAMS.name({"tunnel": "7f3a", "id": 1}) != resources.STREAMS.name({"tunnel": "b012", "id": 1})


@pytest.mark.parametrize("resource", ALL, ids=lambda resource: resource.plural)
def test_tables_fit_a_terminal_and_end_in_an_age(resource: Resource) -> None:
    headers = [column.header for column in resource.shown("table")]
    assert len("   ".join(headers)) <= 80
    assert headers[-1] in ("AGE", "UP")
    assert " " not in "".join(headers)
