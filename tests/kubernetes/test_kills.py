"""kill -9 of either end under every kind of caller: each gets its end at once, and none takes what was cut for whole.

kubectl is judged by its exit code and words, a bare HTTP caller by how its connection ends: without the TLS farewell
that a whole answer has. Two hundred of one kind: tests/loopback/test_faults.py.
"""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.kubernetes.conftest import view
from tests.kubernetes.flows import COUNTER
from tests.kubernetes.rawhttp import Connection
from tests.kubernetes.test_streams import local_port
from tests.kubernetes.views import SPDY, Running, View
from tests.lab.controlplane import ControlPlane
from tests.lab.processes import Child, wait_until
from tests.lab.world import TowerWorld
from tests.loopback.callers import ended, lines, the_line

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]
NAME = "killed"
WINDOW = 2.0
CONSTANTS = {"RESUME_WINDOW": WINDOW, "BACKOFF_MAX": 1.0}
HUGE = 8 * 1024**3  # of zeros that take no room: no copy of it ends before it is cut
BODY = 64  # MiB, more than every buffer on its way
# kubectl's own answer to a connection that is cut, by whomever: mostly no word, and 0.
SILENT = {"exec over SPDY", "watch"}
REQUESTS = {"exec", "portforward", "log", "configmaps"}
BACK = 60.0
AT_ONCE = 1.0  # from when the other side knows


@dataclass(frozen=True)
class End:
    code: int = 0
    said: bytes = b""
    at: float = field(default_factory=time.time)  # wall clock, as in logs


class Callers:
    """All kinds at once, each in the middle of what it does; `ends` fills as they get theirs."""

    def __init__(self, caller: View, folder: Path, stack: contextlib.ExitStack) -> None:
        self.ends: dict[str, End] = {}
        self.far: dict[str, End] = {}
        """Of what they had opened in the member."""
        self._caller, self._stack, self._folder = caller, stack, folder
        self._threads: dict[str, threading.Thread] = {}
        self._killed = threading.Event()
        self._listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        count = ("exec", "pod", "--", sys.executable, "-c", COUNTER, str(folder / "never"))
        self._kubectl("exec over WebSocket", *count).until(b"\n3\n")
        self._kubectl("exec over SPDY", *count, env=SPDY).until(b"\n3\n")
        self._kubectl("logs", "logs", "-f", "pod").until(b"first\n")
        self._kubectl("watch", "get", "configmaps", "--watch", "-o", "name").until(b"configmap/kept\n")
        self._forward("port-forward over WebSocket", {})
        self._forward("port-forward over SPDY", SPDY)
        self._http("download", "GET", "pods/big/log")
        self._http("upload", "POST", "configmaps", "Content-Length: 2000000", body=b'{"kind": "' + b"x" * 1_000_000)
        self._copies()

    def _kubectl(self, name: str, *arguments: str, env: Mapping[str, str] | None = None) -> Running:
        running = self._stack.enter_context(self._caller.start("-n", NAME, *arguments, env=env))

        def ended() -> End:
            code = running._process.wait()
            return End(code, running.stderr)

        self._await(self.ends, name, ended)
        return running

    def _await(self, ends: dict[str, End], name: str, ended: Callable[[], End]) -> None:
        def run() -> None:
            ends[name] = ended()

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads[name] = thread
        thread.start()

    def _http(self, name: str, method: str, path: str, *headers: str, body: bytes = b"") -> None:
        connection = self._stack.enter_context(Connection(self._caller))
        connection._socket.settimeout(BACK)
        connection.send(connection.request(method, f"/api/v1/namespaces/{NAME}/{path}", *headers, body=body))
        if not body:
            assert connection.line().startswith(b"HTTP/1.1 200")

        def ended() -> End:
            self._killed.wait(BACK)  # until then it takes nothing, so that the body is still under way
            try:
                while connection._raw.read(262_144):
                    pass
            except OSError as error:
                return End(1, str(error).encode())
            return End()

        self._await(self.ends, name, ended)

    def _forward(self, name: str, env: Mapping[str, str]) -> None:
        forward = self._kubectl(name, "port-forward", "pod/pod", f":{self._listener.getsockname()[1]}", env=env)
        near = self._stack.enter_context(socket.create_connection(("127.0.0.1", local_port(forward)), timeout=BACK))
        near.sendall(b"there")
        far = self._stack.enter_context(self._listener.accept()[0])
        far.settimeout(BACK)
        assert far.recv(16) == b"there"
        self._await(self.ends, f"connection through {name}", lambda: End(said=ended(near)))
        self._await(self.far, f"far end of {name}", lambda: End(said=ended(far)))

    def _copies(self) -> None:
        """Both at once, to and from; they are under way once something has come."""
        huge, to, back = (self._folder / name for name in ("huge", "to", "from"))
        with huge.open("wb") as file:
            file.truncate(HUGE)
        self._kubectl("copy to", "cp", str(huge), f"pod:{to}")
        self._kubectl("copy from", "cp", f"pod:{huge}", str(back))
        for path in (to, back):
            self._stack.callback(path.unlink, missing_ok=True)
            wait_until(lambda path=path: path.exists() and path.stat().st_size > 0, f"bytes of a copy in {path}", BACK)

    def kill(self, child: Child) -> float:
        """When it was."""
        child.send(signal.SIGKILL)
        self._killed.set()
        return time.time()

    def join(self, ends: dict[str, End]) -> None:
        """Until all of these have come; `ends` or `far`."""
        names = {name for name in self._threads if name.startswith("far ") is (ends is self.far)}
        wait_until(lambda: ends.keys() >= names, "an end for each caller", BACK)


@pytest.fixture(scope="module")
def tower(member: ControlPlane) -> Iterator[TowerWorld]:
    with (
        tempfile.TemporaryDirectory(prefix="twr-") as folder,
        TowerWorld(Path(folder), host=NAME, constants=CONSTANTS) as world,
    ):
        world.join(NAME, member)
        member.kubectl("create", "namespace", NAME)
        member.kubectl("create", "configmap", "kept", "-n", NAME)
        for pod in ("pod", "big"):
            member.create_pod(pod, namespace=NAME)
        member.write_log("pod", "first", namespace=NAME)
        member.write_log("big", *["x" * 16_383] * (64 * BODY), namespace=NAME)
        yield world


@pytest.fixture
def callers(member: ControlPlane, tower: TowerWorld, tmp_path: Path) -> Iterator[Callers]:
    with contextlib.ExitStack() as stack:
        tower.until_state(NAME, "Connected", deadline=BACK)
        yield Callers(view(member, "tunnel", tower.kubeconfig(NAME)), tmp_path, stack)


def check(ends: dict[str, End], since: float) -> None:
    """What each of them saw, and how soon after `since`."""
    took = {name: end.at - since for name, end in ends.items()}
    print(f"{len(ends)} callers had their ends {max(took.values()):.2f} s after that")
    assert max(took.values()) < AT_ONCE, took
    words = {name: (end.code, end.said.decode(errors="replace")) for name, end in ends.items()}
    for name, (code, said) in words.items():
        if name in SILENT and (code, said) == (0, ""):
            continue
        if "port-forward" in name:
            wanted = (0, "") if name.startswith("connection") else (1, "error: lost connection to pod\n")
            assert (code, said) == wanted, name
        else:
            assert code == 1, (name, said)
            assert re.search(r"EOF|reset by peer", said), (name, said)


def test_after_a_killed_server_every_kind_of_caller_ends_at_once_and_so_does_what_it_held_at_the_member(
    tower: TowerWorld, callers: Callers
) -> None:
    agent = tower.members[NAME].agent
    killed = callers.kill(tower.server)
    callers.join(callers.ends)
    check(callers.ends, killed)
    tower.stop_server()
    tower.start()
    callers.join(callers.far)
    down = the_line(agent.log, "tunnel-down", "TWR201")
    assert re.search("no such tunnel for this agent|no new link within", down["text"]), down
    assert max(end.at for end in callers.far.values()) - down["time"] < AT_ONCE

    def ended() -> set[str]:
        of_before = lines(agent.log, "request", f"/namespaces/{NAME}/")
        return {each["path"].rpartition("/")[2].partition("?")[0] for each in of_before if each["time"] > killed}

    wait_until(lambda: ended() >= REQUESTS, f"the end of {REQUESTS} at the member", BACK)


def test_after_a_killed_agent_every_kind_of_caller_ends_with_its_window_and_the_log_says_why(
    tower: TowerWorld, callers: Callers
) -> None:
    why = f"no new link within {WINDOW:g} s"
    killed = callers.kill(tower.members[NAME].agent)
    callers.join(callers.far)
    assert max(end.at for end in callers.far.values()) - killed < AT_ONCE, "its sockets ended with it"
    callers.join(callers.ends)
    closed = the_line(tower.server.log, "tunnel-closed", why)
    check(callers.ends, closed["time"])
    count = sum(not name.startswith("connection ") for name in callers.ends)
    cut = lambda: [each for each in lines(tower.server.log, "connection", "cut: ", why) if each["time"] > killed]  # noqa: E731
    wait_until(lambda: len(cut()) >= count, "an audit line each", BACK)
    tower.restart_agent(NAME)
