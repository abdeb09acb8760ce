from __future__ import annotations

import json

import pytest

from tests.towerctl.kit import Shell, http, peer


def test_a_cluster_without_tunnel_fails_by_its_root_cause_alone(live: Shell, cluster: str) -> None:
    ran = live("check", cluster)
    assert ran.code == 1
    assert f"x TWR200 {cluster}" in ran.out
    assert "next:" in ran.out
    failures = [line for line in ran.out.splitlines() if line.startswith(" x ")]
    assert len(failures) == 1
    assert "towerctl explain TWR200" in ran.out


def test_what_needs_the_root_cause_is_skipped_and_says_so(live: Shell, cluster: str) -> None:
    items = json.loads(live("check", cluster, "-o", "json").out)["items"]
    skipped = [item for item in items if item["status"] == "skipped"]
    assert skipped
    assert {item["root"] for item in skipped} == {"TWR200"}


def test_the_exit_code_is_the_same_in_every_format(live: Shell, cluster: str) -> None:
    assert {live("check", cluster, "-o", output).code for output in ("table", "json", "yaml")} == {1}


def test_no_server_means_not_checked(shell: Shell) -> None:
    shell("check").refused("no tower server runs here", "TWR602", code=3)


def test_an_unknown_cluster_is_refused_with_what_is_close(live: Shell, cluster: str) -> None:
    live("check", f"{cluster}x").refused(f"there is no cluster '{cluster}x'", f"did you mean {cluster}", code=3)


def test_a_server_that_refuses_to_check_is_no_failure_of_the_cluster(shell: Shell) -> None:
    refusal = json.dumps({"code": "TWR614", "message": "bob may not get checks"})
    with peer(shell.socket, http("403 Forbidden", refusal)):
        shell("check", "edge-1").refused("bob may not get checks", "TWR614", code=3)


def test_no_way_to_the_server_means_not_checked(shell: Shell) -> None:
    shell("check", "--context", "nowhere").refused("there is no kubeconfig", "TWR309", code=3)
    shell("ping", "edge-1", "--context", "nowhere").refused("there is no kubeconfig", "TWR309", code=3)


def test_waiting_says_so_and_ends(live: Shell, cluster: str) -> None:
    ran = live("check", cluster, "--wait", "100ms")
    assert ran.code == 1
    assert "checking again for up to 100ms" in ran.err


@pytest.mark.parametrize("ignored", ["TWR200", "twr2xx"])
def test_a_fault_that_is_ignored_is_shown_and_does_not_fail(live: Shell, cluster: str, ignored: str) -> None:
    ran = live("check", cluster, "--ignore", ignored)
    assert ran.code == 0
    assert f"x TWR200 {cluster}" in ran.out


def test_ignoring_another_fault_changes_nothing(live: Shell, cluster: str) -> None:
    assert live("check", cluster, "--ignore", "TWR5xx").code == 1


@pytest.mark.parametrize(("asked", "code"), [((), 0), (("--fail-on=failure",), 0), (("--fail-on=warning",), 1)])
def test_a_warning_fails_only_where_that_is_asked_for(shell: Shell, asked: tuple[str, ...], code: int) -> None:
    item = {"category": "pki", "name": "ca", "title": "tower CA", "status": "warning", "code": "TWR503", "message": "-"}
    with peer(shell.socket, http("200 OK", json.dumps({"kind": "CheckList", "items": [item]}))):
        ran = shell("check", *asked)
    assert ran.code == code, ran
    assert "1 warning" in ran.out


def test_a_code_that_is_none_cannot_be_ignored(shell: Shell) -> None:
    shell("check", "--ignore", "TWR9xx").refused("'TWR9XX' is no fault", "towerctl explain", code=2)


def test_a_server_that_is_silent_is_given_up_after_the_time_asked_for(shell: Shell) -> None:
    with peer(shell.socket, lambda connection: connection.recv(65536) and connection.recv(1)):
        shell("check", "--timeout", "200ms").refused("did not answer within 0.2s", "TWR602", code=3)
