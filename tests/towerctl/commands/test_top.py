from __future__ import annotations

import json
import re

import pytest

from tests.lab.world import TowerWorld
from tests.towerctl.kit import Shell
from towerctl.commands.top import traffic


def tunnel(name: str, cluster: str, *, streams: int, came: int, went: int) -> dict[str, object]:
    return {"id": name, "cluster": cluster, "streams": streams, "bytes_in": came, "bytes_out": went}


def clusters(*names: str) -> dict[str, object]:
    return {"items": [{"name": name, "state": "Connected", "tunnels": 1, "tunnels_expected": 1} for name in names]}


def test_what_tunnels_carried_between_two_looks_is_told_by_cluster_the_busiest_first() -> None:
    before = [tunnel("a", "quiet", streams=1, came=900, went=70), tunnel("b", "busy", streams=2, came=100, went=10)]
    now = [
        tunnel("a", "quiet", streams=1, came=900, went=70),
        tunnel("b", "busy", streams=3, came=300, went=30),
        tunnel("c", "busy", streams=4, came=500, went=50),  # began in between
        tunnel("d", "deleted", streams=1, came=1, went=1),
    ]
    told = traffic(clusters("quiet", "busy", "alone"), {"items": before}, {"items": now}, 2.0)
    shown = {
        item["name"]: (item["streams"], item["in_per_second"], item["out_per_second"], item["state"])
        for item in told["items"]
    }
    assert shown == {
        "busy": (7, 350.0, 35.0, "Connected"),
        "alone": (0, 0.0, 0.0, "Connected"),
        "quiet": (1, 0.0, 0.0, "Connected"),
    }
    assert [item["name"] for item in told["items"]] == ["busy", "alone", "quiet"]
    assert {"apiVersion": "tower/v1", "kind": "TrafficList", "seconds": 2.0}.items() <= told.items()


def test_a_server_that_did_not_answer_is_named() -> None:
    unanswered = [{"server": "tower-1", "reason": "it is silent"}]
    told = traffic(clusters(), {"items": []}, {"items": [], "unanswered": unanswered}, 1.0)
    assert told["unanswered"] == unanswered


def test_each_cluster_has_a_line_under_its_columns(live: Shell, cluster: str) -> None:
    lines = live.ok("top", "--once", "-i", "100ms").splitlines()
    assert lines[0].split() == ["CLUSTER", "REASON", "TUNNELS", "STREAMS", "IN/s", "OUT/s", "RTT"]
    (line,) = [line.split() for line in lines if line.startswith(f"{cluster} ")]
    assert line[1:] == ["NeverConnected", "0/1", "0", "0", "0", "-"]


def test_traffic_through_a_tunnel_is_seen(
    live: Shell, tower: TowerWorld, joined: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def a_request_goes_through(_seconds: float) -> None:
        assert tower.call("POST", f"/v1/clusters/{joined}/ping")[0] == 200

    monkeypatch.setattr("towerctl.commands.top.time.sleep", a_request_goes_through)
    (item,) = json.loads(live.ok("top", joined, "--once", "-o", "json"))["items"]
    assert (item["name"], item["state"]) == (joined, "Connected")
    assert item["in_per_second"] > 0
    assert item["out_per_second"] > 0


def test_an_unknown_cluster_is_refused_with_what_is_close(live: Shell, cluster: str) -> None:
    live("top", f"{cluster}x").refused(f"there is no cluster '{cluster}x'", f"did you mean {cluster}")


@pytest.mark.parametrize("output", ["table", "json", "yaml"])
def test_it_goes_on_until_it_is_told_to_end(
    live: Shell, cluster: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def third_time_ctrl_c(_seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("towerctl.commands.top.time.sleep", third_time_ctrl_c)
    ran = live("top", cluster, "-o", output)
    assert ran.code == 130
    assert len(re.findall(rf"(?m)^{cluster} |\"name\": \"{cluster}\"|name: {cluster}$", ran.out)) == 2
    if output == "json":
        assert [json.loads(line)["kind"] for line in ran.out.splitlines()] == ["TrafficList"] * 2
