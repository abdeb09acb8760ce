from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemon.metrics import STATES, AgentMetrics, ServerMetrics, sample_loop_lag

ROOT = Path(__file__).parents[2]


def series(metrics: ServerMetrics | AgentMetrics) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


@pytest.mark.parametrize("metrics", [ServerMetrics(version="1.2"), AgentMetrics(version="1.2")])
def test_names_are_ours_in_base_units_and_explained(metrics: ServerMetrics | AgentMetrics) -> None:
    for family in text_string_to_metric_families(metrics.render().decode()):
        assert re.fullmatch(r"(tower|process|python)_[a-z0-9_]+", family.name)
        assert not re.search(r"_(ms|milliseconds|kb|minutes)$", family.name)
        if family.name.startswith("tower_"):
            assert family.documentation.endswith(".")
    assert series(metrics)["tower_build_info{version=1.2}"] == 1


def test_no_metric_has_a_label_without_bound() -> None:
    allowed = {"member_cluster", "version", "kind", "result", "state", "reason", "to", "dialect", "cause", "service"}
    allowed |= {"direction", "code", "limit", "host", "hop", "verb"}
    for metrics in (ServerMetrics(version="1"), AgentMetrics(version="1")):
        for metric in vars(metrics).values():
            assert set(getattr(metric, "_labelnames", ())) <= allowed


def test_a_new_cluster_starts_at_zero_and_a_deleted_one_leaves_nothing() -> None:
    metrics = ServerMetrics(version="1")
    before = series(metrics).keys()
    cluster = metrics.cluster("edge-1")
    assert series(metrics)["tower_stream_opens_total{member_cluster=edge-1,result=ok}"] == 0
    cluster.opens["ok"].inc()
    cluster.streams("kubernetes").inc()
    cluster.closed("PING_TIMEOUT")
    cluster.answered("TWR201")
    cluster.state("TunnelDown", ready=False, at=1.0)
    assert metrics.cluster("edge-1") is cluster
    other = metrics.cluster("edge-2")
    other.state("Connected", ready=True, at=1.0)
    metrics.forget("edge-1")
    now = series(metrics)
    assert not [key for key in now if "edge-1" in key]
    assert now["tower_cluster_ready{member_cluster=edge-2}"] == 1
    metrics.forget("edge-2")
    assert series(metrics).keys() == before


def test_transitions_count_changes_only_and_one_reason_stands() -> None:
    metrics = ServerMetrics(version="1")
    cluster = metrics.cluster("c")
    for at, (state, ready) in enumerate(
        [("NeverConnected", False), ("TunnelDown", False), ("TunnelDown", False), ("Connected", True)]
    ):
        cluster.state(state, ready=ready, at=float(at))
        reasons = [key for key in series(metrics) if key.startswith("tower_cluster_not_ready{")]
        assert len(reasons) == (0 if ready else 1)
    now = series(metrics)
    assert now["tower_cluster_transitions_total{member_cluster=c,to=TunnelDown}"] == 1
    assert now["tower_cluster_transitions_total{member_cluster=c,to=Connected}"] == 1
    assert now["tower_cluster_last_transition_timestamp_seconds{member_cluster=c}"] == 3
    assert now["tower_cluster_ready{member_cluster=c}"] == 1


def test_a_reason_comes_and_goes_with_ready_also_where_the_state_stays() -> None:
    """Degraded is both: one of two tunnels is gone, or every probe finds its way full."""
    metrics = ServerMetrics(version="1")
    cluster = metrics.cluster("c")
    for ready in (True, False, True, False):
        cluster.state("Degraded", ready=ready, at=1.0)
        assert ("tower_cluster_not_ready{member_cluster=c,reason=Degraded}" in series(metrics)) is not ready
    assert "tower_cluster_transitions_total{member_cluster=c,to=Degraded}" not in series(metrics)


def test_every_state_has_a_series_from_the_start() -> None:
    now = series(ServerMetrics(version="1"))
    for state in STATES:
        assert now[f"tower_clusters{{state={state}}}"] == 0


@pytest.mark.parametrize(
    "metrics", [ServerMetrics(version="1"), AgentMetrics(version="1"), ServerMetrics(version="1").cluster("c")]
)
def test_every_metric_that_is_declared_is_moved_by_a_room(metrics: object) -> None:
    rooms = [ROOT / room for room in ("daemon", "gateway", "tower_server", "tower_agent")]
    sources = "\n".join(file.read_text() for room in rooms for file in room.rglob("*.py"))
    names = [name for name in vars(metrics) if not name.startswith("_") and name not in ("registry", "name")]
    assert [name for name in names if not re.search(rf"\.{name}\b(?! = )", sources)] == []


@pytest.mark.asyncio
async def test_a_blocked_loop_shows_as_lag() -> None:
    metrics = AgentMetrics(version="1")
    task = asyncio.create_task(sample_loop_lag(metrics.event_loop_lag, interval=0.01))
    await asyncio.sleep(0)
    time.sleep(0.1)
    while not series(metrics)["tower_event_loop_lag_seconds_count{}"]:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert series(metrics)["tower_event_loop_lag_seconds_sum{}"] > 0.05
