from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.towerctl.kit import Shell, http, peer

ANSWER = {"kind": "Ping", "tunnel": "t", "mux": 0.1, "stream": 0.101, "readyz": 0.331, "status": 200}


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
    live("ping", f"{cluster}x").refused(f"there is no cluster '{cluster}x'", f"did you mean {cluster}", code=3)


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
    with peer(shell.socket, http("200 OK", json.dumps(ANSWER))):
        summary = shell.ok("ping", "edge-1", "-c", "1").splitlines()[-1]
    assert summary == "1 sent, 0 lost; link 100.0ms, agent+apiserver 30.0ms"


def test_several_pings_are_summed_up_for_each_part(shell: Shell) -> None:
    with peer(shell.socket, http("200 OK", json.dumps(ANSWER))):
        *_, summary, spread = shell.ok("ping", "edge-1", "-c", "2", "-i", "1ms").splitlines()
    assert summary.startswith("2 sent, 0 lost; link ")
    assert spread == "min/avg/max: mux 100.0/100.0/100.0ms, stream 101.0/101.0/101.0ms, readyz 331.0/331.0/331.0ms"


@pytest.mark.parametrize(("status", "code"), [(200, 0), (500, 1)])
def test_an_interrupt_ends_it_with_the_sum_of_what_was_sent(shell: Shell, status: int, code: int) -> None:
    with peer(shell.socket, http("200 OK", json.dumps(ANSWER | {"status": status}))), pinging("-i", "1h") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("seq=1 ")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert out.startswith(f"1 sent, {code} lost; link 100.0ms")
    assert (process.returncode, "Traceback" in err) == (code, False), err


def test_an_interrupt_before_the_first_answer_is_only_that(shell: Shell) -> None:
    asked = threading.Event()

    def silent(connection: socket.socket) -> None:
        connection.recv(65536)
        asked.set()
        connection.recv(1)

    with peer(shell.socket, silent), pinging() as process:
        assert asked.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "")


@contextlib.contextmanager
def pinging(*options: str) -> Iterator[subprocess.Popen[str]]:
    """`towerctl ping` as a process, in a session of its own so that the signal is for it alone."""
    command = [Path(sys.executable).parent / "towerctl", "ping", "edge-1", *options]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=dict(os.environ), start_new_session=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()
