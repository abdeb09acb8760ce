from __future__ import annotations

import json

from tests.towerctl.kit import Shell, http, peer


def test_a_cluster_without_tunnel_loses_every_ping_and_says_why(live: Shell, cluster: str) -> None:
    ran = live("ping", cluster, "-c", "2", "-i", "10ms")
    assert ran.code == 1
    first, second, summary = ran.out.splitlines()
    assert first.startswith("seq=1 lost: TWR200")
    assert second.startswith("seq=2 lost: TWR200")
    assert summary == "2 sent, 2 lost"
    assert "next: run the join command in the member" in ran.err
    assert "explain TWR200" in ran.err


def test_json_has_an_item_a_ping_and_the_same_exit_code(live: Shell, cluster: str) -> None:
    ran = live("ping", cluster, "-c", "1", "-o", "json")
    assert ran.code == 1
    (item,) = json.loads(ran.out)["items"]
    assert (item["seq"], item["apiVersion"], item["kind"], item["code"]) == (1, "tower/v1", "Error", "TWR200")


def test_no_server_means_not_checked_and_not_lost(shell: Shell) -> None:
    shell("ping", "edge-1").refused("no tower server runs here", code=3)


def test_an_unknown_cluster_is_refused_with_what_is_close(live: Shell, cluster: str) -> None:
    live("ping", f"{cluster}x").refused(f"there is no cluster '{cluster}x'", f"did you mean {cluster}")


def test_no_pings_are_a_usage_error(live: Shell, cluster: str) -> None:
    live("ping", cluster, "-c", "0").refused("--count", code=2)
    live("ping", cluster, "-i", "often").refused("--interval", code=2)


def test_an_apiserver_that_is_not_ready_has_a_next_step(shell: Shell) -> None:
    answer = {"kind": "Ping", "tunnel": "t", "mux": 0.1, "stream": 0.1, "readyz": 0.2, "status": 500}
    with peer(shell.socket, http("200 OK", json.dumps(answer))):
        ran = shell("ping", "edge-1", "-c", "1")
    assert ran.code == 1
    assert "answered 500 to /readyz" in ran.err
    assert "check edge-1" in ran.err


def test_a_slow_link_is_not_blamed_on_the_member(shell: Shell) -> None:
    answer = {"kind": "Ping", "tunnel": "t", "mux": 0.1, "stream": 0.101, "readyz": 0.331, "status": 200}
    with peer(shell.socket, http("200 OK", json.dumps(answer))):
        summary = shell.ok("ping", "edge-1", "-c", "1").splitlines()[-1]
    assert summary == "1 sent, 0 lost; link 100.0ms, agent+apiserver 30.0ms"
