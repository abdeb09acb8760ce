"""The command line where there is something to see: a real agent, its tunnel, streams in it, and their end."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.processes import free_ports, wait_until
from tests.lab.world import TowerWorld
from tests.towerctl.kit import Shell
from tests.towerctl.member import Apiserver, Member

TOWERCTL = str(Path(sys.executable).parent / "towerctl")


@contextlib.contextmanager
def forwarding(live: Shell, cluster: str, service: str) -> Iterator[int]:
    """`towerctl forward` as a process; the port that it printed."""
    command = [TOWERCTL, "forward", cluster, service, "--socket", str(live.socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        found = re.fullmatch(rf"Forwarding from 127\.0\.0\.1:(\d+) -> {cluster}/{service}\n", line)
        try:
            assert found, process.stderr.read()
            yield int(found[1])
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(10)
    assert code == 0, "Ctrl-C is how forward is meant to end"


def test_the_table_shows_a_cluster_that_is_ready(live: Shell, joined: str) -> None:
    line = live.ok("get", "clusters", joined, "--no-headers").split()
    assert line[:4] == [joined, "True", "Connected", "1/1"]
    assert line[4].endswith("s")
    assert line[5] == "v1.34.0"


def test_tunnels_and_agents_name_each_other(live: Shell, joined: str) -> None:
    (tunnel,) = json.loads(live.ok("get", "tunnels", "--cluster", joined, "-o", "json"))["items"]
    (agent,) = json.loads(live.ok("get", "agents", "--cluster", joined, "-o", "json"))["items"]
    assert tunnel["agent"] == agent["name"]
    assert live.ok("get", "tunnels", tunnel["id"], "--no-headers").split()[:5] == [
        joined,
        tunnel["id"],
        agent["name"],
        tunnel["remote"],
        "Open",
    ]
    assert "Connected" in live.ok("get", "agents", agent["name"], "--cluster", joined)
    assert tunnel["id"] in live.ok("describe", "agent", agent["name"], "--cluster", joined)


def test_describe_shows_member_tunnel_and_history(live: Shell, joined: str) -> None:
    told = live.ok("describe", "cluster", joined)
    for part in ("True   Connected", "Kubernetes v1.34.0, 3 nodes, kube-system uid-1", "echo", "opened", "Listening"):
        assert part in told, told


def test_ping_times_the_three_parts_apart(live: Shell, joined: str) -> None:
    lines = live.ok("ping", joined, "-c", "2", "-i", "0").splitlines()
    for number, line in enumerate(lines[:2], 1):
        found = re.fullmatch(rf"seq={number} tunnel=\S+ mux=([\d.]+)ms stream=([\d.]+)ms readyz=([\d.]+)ms 200", line)
        assert found, line
    assert re.fullmatch(r"2 sent, 0 lost; link [\d.]+ms, agent\+apiserver [\d.]+ms", lines[2])


def test_an_apiserver_that_is_not_ready_is_a_loss(live: Shell, joined: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Apiserver, "ready", False)
    ran = live("ping", joined, "-c", "1")
    assert ran.code == 1
    assert "1 sent, 1 lost" in ran.out


def test_check_is_quiet_where_all_is_well(live: Shell, joined: str) -> None:
    ran = live("check", joined)
    assert ran.code == 0, ran
    assert " x " not in ran.out
    assert "0 failed" in ran.out


def test_forward_carries_bytes_to_a_declared_service(live: Shell, joined: str) -> None:
    sent = bytes(range(256)) * 4096
    with forwarding(live, joined, "echo") as port, socket.create_connection(("127.0.0.1", port), timeout=10) as local:
        local.sendall(b"hello")
        assert local.recv(5) == b"hello"
        streams = json.loads(live.ok("get", "streams", "--cluster", joined, "-o", "json"))["items"]
        assert "echo" in {stream["service"] for stream in streams}
        local.sendall(sent)
        got = bytearray()
        while len(got) < len(sent):
            got += local.recv(65536)
        assert bytes(got) == sent
        local.shutdown(socket.SHUT_WR)
        assert local.recv(1) == b""


def test_a_forward_that_other_machines_reach_says_so(live: Shell, joined: str) -> None:
    command = [TOWERCTL, "forward", joined, "echo", "0.0.0.0:0", "--socket", str(live.socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    found = re.fullmatch(rf"Forwarding from (0\.0\.0\.0:\d+) -> {joined}/echo\n", line)
    assert found, said
    assert said == f"Whoever reaches {found[1]} reaches the service, without asking the tower.\n"


@pytest.mark.parametrize(("service", "code"), [("undeclared", "TWR226"), ("nothing", "TWR310")])
def test_a_service_that_cannot_be_reached_is_said_before_anything_listens(
    live: Shell, joined: str, service: str, code: str
) -> None:
    live("forward", joined, service).refused(service, code)


def test_a_local_port_that_is_taken_is_refused(live: Shell, joined: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        live("forward", joined, "echo", str(port)).refused(f"127.0.0.1:{port}", "choose another local port", "TWR103")


@pytest.mark.slow
def test_deleting_says_what_ends_and_ends_it(live: Shell, tower: TowerWorld, place: Member) -> None:
    with place.joined(tower, "doomed"):
        with forwarding(live, "doomed", "echo") as port, socket.create_connection(("127.0.0.1", port)) as local:
            local.sendall(b"x")
            assert local.recv(1) == b"x"
            told = live.ok("delete", "cluster", "doomed", "--yes")
            assert re.search(r"ends 1 tunnel and [1-9]\d* streams?, revokes 1 agent and gives port \d+ back", told)
            local.settimeout(10)
            assert local.recv(1) == b"", "its streams end with it"
        left = json.loads(live.ok("get", "tunnels", "-o", "json"))["items"]
        assert "doomed" not in {tunnel["cluster"] for tunnel in left}


@pytest.mark.slow
def test_a_revoked_agent_is_out_at_once_and_stays_out(live: Shell, tower: TowerWorld, place: Member) -> None:
    with place.joined(tower, "expelled"):
        (agent,) = json.loads(live.ok("get", "agents", "--cluster", "expelled", "-o", "json"))["items"]
        told = live.ok("revoke", "agent", agent["name"], "--cluster", "expelled")
        assert told == f"agent {agent['name']} of cluster expelled revoked; 1 of its tunnels closed\n"
        assert json.loads(live.ok("get", "tunnels", "--cluster", "expelled", "-o", "json"))["items"] == []
        assert "Revoked" in live.ok("get", "agents", "--cluster", "expelled")
        wait_until(lambda: tower.cluster("expelled")["state"] == "AuthFailed", "the agent was refused", 20)
        assert tower.cluster("expelled")["ready"] == "False"


def test_ports_of_this_machine_can_be_chosen(live: Shell, joined: str) -> None:
    (port,) = free_ports(1)
    command = [TOWERCTL, "forward", joined, "echo", str(port), "--socket", str(live.socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert f"127.0.0.1:{port} " in process.stdout.readline()
        process.terminate()
        assert process.wait(10) == 0
