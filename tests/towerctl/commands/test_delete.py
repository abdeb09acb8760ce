from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.towerctl.kit import Shell

TOWERCTL = str(Path(sys.executable).parent / "towerctl")


def on_a_terminal(live: Shell, answer: bytes, *arguments: str) -> tuple[int, str]:
    """Runs towerctl with a real terminal as standard input and error; types `answer`."""
    ours, theirs = pty.openpty()
    try:
        try:
            command = [TOWERCTL, *arguments, "--socket", str(live.socket)]
            process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs)
        finally:
            os.close(theirs)
        with process:
            os.write(ours, answer)
            process.communicate(timeout=20)
            return process.returncode, said(ours)
    finally:
        os.close(ours)


def said(terminal: int) -> str:
    """All that stands on it: the kernel hands over what was written a little later."""
    read = b""
    with contextlib.suppress(OSError):  # EIO: nobody has its other side any more
        while more := os.read(terminal, 65536):
            read += more
    return read.decode()


def exists(live: Shell, cluster: str) -> bool:
    return live("get", "clusters", cluster).code == 0


def test_a_person_is_asked_and_told_what_ends(live: Shell, cluster: str) -> None:
    ports = json.loads(live.ok("get", "clusters", cluster, "-o", "json"))["ports"]
    code, asked = on_a_terminal(live, b"n\n", "delete", "cluster", cluster)
    assert f"Deleting cluster {cluster} ends 0 tunnels and 0 streams, revokes 0 agents" in asked
    assert f"gives port {ports['kubernetes']} back" in asked
    assert asked.endswith(f"Not confirmed: cluster {cluster} stays as it is.\r\n")
    assert code == 1
    assert exists(live, cluster)


def test_a_person_who_agrees_is_obeyed(live: Shell, cluster: str) -> None:
    code, _ = on_a_terminal(live, b"y\n", "delete", "cluster", cluster)
    assert code == 0
    assert not exists(live, cluster)


def test_a_script_has_to_say_yes(live: Shell, cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        live("delete", "cluster", cluster).refused("there is nobody to ask", "--yes", code=2)
    assert exists(live, cluster)
    assert f"cluster {cluster} deleted" in live.ok("delete", "cluster", cluster, "--yes")
    assert not exists(live, cluster)


def test_what_kubectl_keeps_of_it_is_named_and_left(
    live: Shell, cluster: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other, none = folder / "my config", folder / "other", folder / "none"
    other.write_text("- no kubeconfig")
    monkeypatch.setenv("KUBECONFIG", f"{mine}:{other}:{none}")
    live.ok("add", "cluster", f"{cluster}-b", "--no-join")
    for name in (cluster, f"{cluster}-b"):
        live.ok("kubeconfig", name, "--merge")
    before = mine.read_text()
    told = live("delete", "cluster", cluster, "--yes").err
    assert f"{mine} still has entries for it" in told
    assert [line.strip() for line in told.splitlines()[1:]] == [
        f"kubectl --kubeconfig '{mine}' config delete-{kind} {cluster}" for kind in ("context", "cluster", "user")
    ]
    assert mine.read_text() == before
    monkeypatch.delenv("KUBECONFIG")
    assert live("delete", "cluster", f"{cluster}-b", "--yes").err == "", "nothing is said where there is nothing"


def test_the_port_can_be_had_again(live: Shell) -> None:
    def port(name: str) -> int:
        added = json.loads(live.ok("add", "cluster", name, "--no-join", "-o", "json"))
        live.ok("delete", "cluster", name, "-y")
        found: int = added["ports"]["kubernetes"]
        return found

    assert port("port-a") == port("port-b")


def test_tokens_of_a_deleted_cluster_are_gone(live: Shell, cluster: str) -> None:
    token = json.loads(live.ok("create", "token", cluster, "-o", "json"))["id"]
    live.ok("delete", "cluster", cluster, "--yes")
    found = live("get", "tokens", token, "-o", "json")
    assert found.code == 1 or json.loads(found.out)["state"] == "Revoked"


def test_an_unknown_cluster_is_refused_before_anybody_is_asked(live: Shell, cluster: str) -> None:
    live("delete", "cluster", f"{cluster}x").refused(f"there is no cluster '{cluster}x'", f"did you mean {cluster}")


def test_go_agents_are_no_longer_taken(live: Shell, cluster: str) -> None:
    live.ok("create", "legacy-token", cluster)
    assert "takes no Go agents any more: 0 tunnels closed" in live.ok("delete", "legacy-token", cluster)
    live.ok("create", "legacy-window", cluster)
    assert f"the window of cluster {cluster} is closed" in live.ok("delete", "legacy-window", cluster)
    live("delete", "legacy-token", cluster + "x").refused(f"did you mean {cluster}", "TWR603")
