"""What upgrades or flows: logs -f, exec, attach, cp, port-forward; over WebSocket and over SPDY, both ways the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.kubernetes.conftest import MEMBER
from tests.kubernetes.views import TRANSPORTS, Pair, Running, View, assert_same
from tests.lab.controlplane import ControlPlane, Done
from tests.lab.processes import wait_until, whole_lines
from tests.lab.world import TowerWorld

pytestmark = pytest.mark.cluster
MIB = 1024 * 1024
POD = ("-n", "shared", "shared")


@pytest.fixture(params=TRANSPORTS)
def env(request: pytest.FixtureRequest) -> Mapping[str, str]:
    return TRANSPORTS[request.param]


def test_logs_follow_what_is_written(pair: Pair, member: ControlPlane) -> None:
    last = f"last line {uuid.uuid4()}"  # the log is the session's, and a follower begins with all of it
    with contextlib.ExitStack() as stack:
        follows = [stack.enter_context(view.start("logs", "-f", *POD)) for view in pair.both()]
        for follow in follows:
            follow.until(b"second line\n")
        member.write_log("shared", *(f"line {number}" for number in range(100)), last, namespace="shared")
        direct, tunnel = (follow.until(f"{last}\n".encode()) for follow in follows)
        assert direct == tunnel
        assert all(follow.running for follow in follows)


@pytest.mark.parametrize("code", [0, 1, 42, 137])
def test_exec_gives_output_errors_and_exit_code(pair: Pair, env: Mapping[str, str], code: int) -> None:
    command = ("exec", *POD, "--", "sh", "-c", f"echo out; echo err >&2; exit {code}")
    direct, tunnel = (view.kubectl(*command, env=env) for view in pair.both())
    assert direct.code == code
    assert_same(pair, direct, tunnel)


def test_exec_with_stdin_ends_when_its_input_ends(pair: Pair, env: Mapping[str, str]) -> None:
    data = os.urandom(5 * MIB)
    command = ("exec", "-i", *POD, "--", "sha256sum")
    direct, tunnel = (view.kubectl(*command, env=env, stdin=data) for view in pair.both())
    assert direct.text.startswith(hashlib.sha256(data).hexdigest())
    assert_same(pair, direct, tunnel)


def test_exec_answers_while_its_input_is_open(pair: Pair, env: Mapping[str, str]) -> None:
    def talk(view: View) -> tuple[int, bytes, bytes]:
        with view.start("exec", "-i", *POD, "--", "sh", "-c", 'while read x; do echo "got $x"; done', env=env) as shell:
            for number in range(5):
                shell.type(f"{number}\n".encode())
                shell.until(f"got {number}\n".encode())
            shell.end_input()
            done = shell.wait()
            return done.code, done.stdout, done.stderr

    direct, tunnel = (talk(view) for view in pair.both())
    assert direct == tunnel == (0, b"".join(b"got %d\n" % number for number in range(5)), b"")


def test_exec_with_a_terminal(pair: Pair, env: Mapping[str, str]) -> None:
    """What is typed is echoed, and the far terminal takes the size of the near one, now and when that changes."""
    sizes = (
        'for size in "24 80" "33 77"; do until [ "$(stty size)" = "$size" ]; do sleep 0.05; done; echo now $size; done'
    )

    def session(view: View) -> tuple[int, bytes]:
        command = ("exec", "-it", *POD, "--", "sh", "-c", f"{sizes}; read x; echo got $x; exit 3")
        with view.start(*command, env=env, tty=True) as shell:
            shell.resize(24, 80)
            shell.until(b"now 24 80\r\n")
            shell.resize(33, 77)
            shell.until(b"now 33 77\r\n")
            shell.type(b"hello\r")
            shell.until(b"got hello\r\n")
            done = shell.wait()
            return done.code, done.stdout + done.stderr

    direct, tunnel = (session(view) for view in pair.both())
    assert direct[0] == 3
    assert direct == tunnel


def test_the_transport_that_was_asked_for_is_the_one_used(
    pair: Pair, world: TowerWorld, member: ControlPlane, env: Mapping[str, str]
) -> None:
    """kubectl falls back to SPDY silently where WebSocket fails: the agent's audit lines tell them apart."""
    agent, pod = world.members[MEMBER].agent, f"asked-{pair.caller}-{'spdy' if env else 'websocket'}"
    member.create_pod(pod, namespace="shared")
    assert pair.tunnel.kubectl("exec", "-n", "shared", pod, "--", "true", env=env).code == 0
    with pair.tunnel.start("port-forward", "-n", "shared", f"pod/{pod}", ":9", env=env) as forward:
        local_port(forward)

    def upgrades() -> list[tuple[str, str]]:
        lines = [json.loads(line) for line in whole_lines(agent.log) if f"/pods/{pod}/" in line]
        return [(line["method"], line["path"].rpartition("/")[2]) for line in lines if line.get("code") == 101]

    wait_until(lambda: len(upgrades()) >= 2, "two upgrades in the agent's log", 30)
    method = "POST" if env else "GET"
    assert upgrades() == [(method, "exec"), (method, "portforward")]


def test_attach_sees_what_is_typed(pair: Pair, env: Mapping[str, str]) -> None:
    def session(view: View) -> Done:
        with view.start("attach", "-i", *POD, env=env) as attached:
            attached.type(b"typed\n")
            attached.until(b"typed\n")
            attached.end_input()
            return attached.wait()

    direct, tunnel = (session(view) for view in pair.both())
    assert direct.code == 0
    assert_same(pair, direct, tunnel)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_cp_of_100_mib_both_ways(pair: Pair, env: Mapping[str, str], tmp_path: Path) -> None:
    source = tmp_path / "source"
    block = os.urandom(MIB)
    with source.open("wb") as file:
        for number in range(100):
            file.write(number.to_bytes(4) + block[4:])
    for view in pair.both():
        inside = tmp_path / f"inside-{view.name}"
        inside.mkdir()
        done = view.kubectl("cp", "-n", "shared", str(source), f"shared:{inside}/file", env=env, deadline=120)
        assert (done.code, done.stderr) == (0, b"")
        assert digest(inside / "file") == digest(source)
        back = tmp_path / f"back-{view.name}"
        done = view.kubectl("cp", "-n", "shared", f"shared:{inside}/file", str(back), env=env, deadline=120)
        assert done.code == 0, done
        assert digest(back) == digest(source)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_port_forward_carries_bytes_and_half_closes(pair: Pair, env: Mapping[str, str], echo_port: int) -> None:
    data = os.urandom(4 * MIB)
    for view in pair.both():
        with view.start("port-forward", "-n", "shared", "pod/shared", f":{echo_port}", env=env) as forward:
            for _ in range(2):  # two connections, one after the other
                assert exchange(local_port(forward), data) == hashlib.sha256(data).digest()


def local_port(forward: Running) -> int:
    line = forward.until(b" -> ").split(b" -> ")[0]
    return int(line.rpartition(b":")[2])


def exchange(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        sender = threading.Thread(target=lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR)))
        sender.start()
        answer = hashlib.sha256()
        while piece := client.recv(65536):
            answer.update(piece)
        sender.join(20)
        return answer.digest()


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that sends back what it gets, and ends after its peer's end."""

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                while piece := peer.recv(65536):
                    peer.sendall(piece)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
