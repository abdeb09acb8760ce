"""Arguments are refused with what is wrong and what would be right, before any server is asked."""

from __future__ import annotations

import pytest

from tests.towerctl.kit import Shell, http, peer


@pytest.mark.parametrize("name", ["Edge", "edge_1", "-edge", "edge-", "a.b", "../etc", "a b", "", "x" * 64, "é"])
def test_a_name_that_is_no_dns_label_is_refused(shell: Shell, name: str) -> None:
    shell("add", "cluster", "--", name).refused("cannot be the name of a cluster", "lower-case letters", code=2)


@pytest.mark.parametrize("ttl", ["soon", "", "-1h", "5x", "1h30", "0s", "nan"])
def test_a_lifetime_that_is_none_is_refused(shell: Shell, ttl: str) -> None:
    shell("create", "token", "edge-1", f"--ttl={ttl}").refused("--ttl", code=2)


@pytest.mark.parametrize(("ttl", "why"), [("10s", "is less than 60s"), ("400d", "is more than")])
def test_a_certificate_lifetime_out_of_bounds_names_the_bound(shell: Shell, ttl: str, why: str) -> None:
    shell("kubeconfig", "edge-1", "--embed", "--ttl", ttl).refused(why, code=2)


@pytest.mark.parametrize("user", ["", " alice", "alice\n", "a\x00b", "ä", "x" * 65])
def test_a_caller_that_no_header_could_carry_is_refused(shell: Shell, user: str) -> None:
    shell("revoke", "caller", user).refused("cannot be a caller's name", "printable ASCII", code=2)


@pytest.mark.parametrize("words", [("ping",), ("check",), ("kubeconfig",), ("top", "--once"), ("delete", "cluster")])
def test_a_cluster_is_named_as_minus_o_name_prints_it(live: Shell, cluster: str, words: tuple[str, ...]) -> None:
    named = live.ok("get", "clusters", cluster, "-o", "name").strip()
    assert named == f"cluster/{cluster}"
    ran = live(*words, f"{named}x")
    assert f"there is no cluster '{cluster}x'" in ran.err


def test_what_is_of_another_kind_is_no_name(shell: Shell) -> None:
    shell("ping", "agent/edge-1").refused("'agent/edge-1' cannot be the name of a cluster", code=2)
    shell("add", "cluster", "cluster/edge-1").refused("'cluster/edge-1' cannot be the name of a cluster", code=2)


def test_names_are_completed_from_the_server(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    body = '{"kind": "ClusterList", "items": [{"name": "edge-1"}, {"name": "edge-2"}, {"name": "lab"}]}'
    monkeypatch.setenv("_TOWERCTL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "towerctl describe cluster ed")
    monkeypatch.setenv("COMP_CWORD", "3")
    with peer(shell.socket, http("200 OK", body)):
        assert shell().out.split() == ["plain,edge-1", "plain,edge-2"]


def test_completion_without_a_server_is_silent_and_fast(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TOWERCTL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "towerctl describe cluster ed")
    monkeypatch.setenv("COMP_CWORD", "3")
    ran = shell()
    assert (ran.code, ran.out.strip(), ran.err) == (0, "", "")


@pytest.mark.parametrize(
    ("words", "body", "expected"),
    [
        ("describe agent ab", '{"items": [{"name": "abc"}, {"name": "xyz"}]}', ["abc"]),
        ("revoke agent ''", '{"items": [{"name": "abc"}, {"name": "xyz"}]}', ["abc", "xyz"]),
        ("revoke token 4", '{"items": [{"name": "4f"}, {"name": "5f"}]}', ["4f"]),
        ("forward edge-1 ''", '{"member": {"services": {"kubernetes": {}, "grafana": {}}}}', ["grafana"]),
        ("forward edge-1 ''", '{"member": {}}', []),
    ],
)
def test_what_a_command_names_is_completed(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, words: str, body: str, expected: list[str]
) -> None:
    monkeypatch.setenv("_TOWERCTL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", f"towerctl {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    with peer(shell.socket, http("200 OK", body)):
        assert shell().out.split() == [f"plain,{name}" for name in expected]
