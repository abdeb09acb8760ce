from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.towerctl.kit import Shell, peer

TOWERCTL = str(Path(sys.executable).parent / "towerctl")


def event(kind: str, name: str, state: str, **more: object) -> dict[str, object]:
    return {"type": kind, "object": {"name": name, "ready": "True", "state": state, **more}}


def stream(*events: dict[str, object]) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        lines = "".join(json.dumps(each) + "\n" for each in events)
        connection.sendall(f"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{lines}".encode())

    return answer


def test_a_row_is_printed_again_only_when_something_happened(shell: Shell) -> None:
    events = (
        event("ADDED", "edge-1", "Connected", rtt=0.031),
        {"type": "SYNCED"},
        event("MODIFIED", "edge-1", "Connected", rtt=0.044),
        event("MODIFIED", "edge-1", "Degraded", rtt=0.044),
        event("DELETED", "edge-1", "Degraded"),
    )
    with peer(shell.socket, stream(*events)):
        lines = shell("get", "clusters", "--watch").out.splitlines()
    assert [line.split()[2] for line in lines] == ["REASON", "Connected", "Degraded", "Deleted"]


def test_json_has_one_change_a_line(shell: Shell) -> None:
    with peer(shell.socket, stream(event("ADDED", "a", "Connected"), event("DELETED", "a", "Connected"))):
        lines = shell("get", "clusters", "-w", "-o", "json").out.splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["CURRENT", "DELETED"]


def test_names_and_no_headers(shell: Shell) -> None:
    with peer(shell.socket, stream(event("ADDED", "a", "Connected"))):
        assert shell("get", "clusters", "-w", "-o", "name").out == "cluster/a\n"
        assert shell("get", "clusters", "-w", "--no-headers").out.startswith("a ")


def test_a_watch_that_the_server_ends_says_so_and_fails(shell: Shell) -> None:
    with peer(shell.socket, stream(event("ADDED", "a", "Connected"))):
        ran = shell("get", "clusters", "-w")
    assert ran.code == 1
    assert "ended the watch" in ran.err
    assert "watch again once it is back" in ran.err


def test_the_real_server_tells_of_a_cluster_that_comes_and_goes(live: Shell) -> None:
    command = [TOWERCTL, "get", "clusters", "-w", "-o", "name", "--socket", str(live.socket)]
    live.ok("add", "cluster", "watched-0", "--no-join")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        seen = []
        try:
            while "cluster/watched-0\n" not in seen:
                seen.append(watching.stdout.readline())
            live.ok("add", "cluster", "watched-1", "--no-join")
            while "cluster/watched-1\n" not in seen:
                seen.append(watching.stdout.readline())
            live.ok("delete", "cluster", "watched-1", "--yes")
            while seen.count("cluster/watched-1\n") < 2:
                seen.append(watching.stdout.readline())
        finally:
            watching.terminate()
            live("delete", "cluster", "watched-0", "--yes")


@pytest.mark.slow
def test_kinds_without_a_watch_are_listed_again_and_again(live: Shell, cluster: str) -> None:
    command = [TOWERCTL, "get", "tokens", "--cluster", cluster, "-w", "--socket", str(live.socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        try:
            token = json.loads(live.ok("create", "token", cluster, "-o", "json"))["id"]
            states = []
            while "Valid" not in states:
                line = watching.stdout.readline().split()
                states += line[2:3] if token in line else []
            live.ok("revoke", "token", token)
            while "Revoked" not in states:
                line = watching.stdout.readline().split()
                states += line[2:3] if token in line else []
        finally:
            watching.terminate()
    assert states[-1] == "Revoked"
