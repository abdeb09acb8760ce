"""The measuring of many clusters, with few of them: what it says is true, and a restart writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.controller import ACCOUNT, TARGETS, measure, report, requests_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]
CLUSTERS = 20
REQUESTS_EACH = 8  # record, claim, two notes on the record, Service, slice, status, resource; none of them a read


def test_a_cluster_costs_few_requests_and_a_restart_no_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = measure(tmp_path, CLUSTERS, idle=4.0)
    print(figures)
    assert set(TARGETS) <= set(figures)
    work = {each: count for each, count in figures["requests_by_kind"].items() if "leases" not in each}
    work["create leases"] = figures["requests_by_kind"]["create leases"]
    reads = sum(count for each, count in work.items() if each.split()[0] in ("get", "list"))
    assert sum(work.values()) - reads <= 1.5 * REQUESTS_EACH * CLUSTERS
    assert reads <= CLUSTERS
    assert figures["restart_writes"] == 0, figures["restart_writes_by_kind"]
    assert figures["ports_listening"] == CLUSTERS
    assert figures["idle"]["writes_beside_leases"] == 0, figures["idle"]
    missed = report(figures | {"restart_writes": 3}, tmp_path / "x.json")
    assert missed == 1
    assert "MISSED" in capsys.readouterr().out


def test_only_the_servers_own_requests_are_counted_and_a_watch_once() -> None:
    def line(user: str, verb: str, stage: str, **about: str) -> bytes:
        event = {"user": {"username": user}, "verb": verb, "stage": stage, "objectRef": about}
        return json.dumps(event).encode()

    lines = [
        line(ACCOUNT, "watch", "ResponseStarted", resource="services"),
        line(ACCOUNT, "watch", "ResponseComplete", resource="services"),
        line(ACCOUNT, "update", "ResponseComplete", resource="members", subresource="status"),
        line("somebody", "update", "ResponseComplete", resource="members"),
        b'{"user": {}, "verb": "get", "stage": "ResponseComplete"}',
    ]
    assert requests_of(lines) == {("watch", "services"): 1, ("update", "members/status"): 1}
