"""A machine that fails under a server or an agent: killed, a full disk, no descriptors left, a clock that jumps.

What runs goes on where it can, what cannot be done is refused with a reason, and everything heals by itself.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import resource
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.rawhttp import Answer, Connection
from tests.lab.processes import Child, free_ports, wait_until, whole_lines
from tests.lab.world import TowerWorld
from tests.loopback.callers import Caller, lines, logs, the_line, tunnels, watching
from tests.loopback.member import BackendMember
from tests.loopback.relay import Network, network

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
NAME = "edge"
WINDOW = 4.0
CONSTANTS = {"RESUME_WINDOW": WINDOW, "BACKOFF_MAX": 1.0}
WATCHERS = 200
BACK = 60.0
AT_ONCE = 1.0  # between one end's finding and the last caller's end


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="twr-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def joined(folder: Path, member: BackendMember, **more: Any) -> Iterator[TowerWorld]:
    with TowerWorld(folder, constants=CONSTANTS, **more) as world:
        world.join(NAME, member, credential=member.by_token)
        yield world


@pytest.fixture(scope="module")
def net(place: Path) -> Iterator[tuple[Network, int]]:
    (port,) = free_ports(1)
    with network(place, port) as relay:
        yield relay, port


@pytest.fixture(scope="module")
def tower(place: Path, net: tuple[Network, int], member: BackendMember) -> Iterator[TowerWorld]:
    relay, port = net
    settings = {"public_url": f"wss://127.0.0.1:{relay.port}"}
    with joined(place / "w", member, settings=settings, tunnel_port=port) as world:
        yield world


@pytest.fixture
def world(tower: TowerWorld) -> TowerWorld:
    """The tower of the module, well again after the test before."""
    tower.until_state(NAME, "Connected", deadline=BACK)
    return tower


# ---- kill -9 ---------------------------------------------------------------------------------------------------------


class Watchers:
    """Many callers that watch, each in a thread; `ends` is when each got its end, on the wall clock, and `whole` how
    many of them took it for the end of the answer. (Other kinds of callers: tests/kubernetes/test_kills.py.)"""

    def __init__(self, caller: Caller) -> None:
        self.ends: list[float] = []
        self.whole = 0
        self._connections = [caller.connect() for _ in range(WATCHERS)]
        for connection in self._connections:
            connection.send(connection.request("GET", "/watch"))
            assert connection.line().startswith(b"HTTP/1.1 200")
        self._threads = [threading.Thread(target=self._watch, args=(each,)) for each in self._connections]
        for thread in self._threads:
            thread.start()

    def _watch(self, connection: Connection) -> None:
        try:
            while connection.line():
                pass
            self.whole += 1
        except OSError:  # no farewell of TLS's: it was cut
            pass
        self.ends.append(time.time())

    def join(self) -> None:
        for thread in self._threads:
            thread.join(BACK)
        for connection in self._connections:
            connection.__exit__()
        assert len(self.ends) == WATCHERS, "callers that never got an end"
        assert self.whole == 0, "what was cut must not look complete"


@pytest.mark.timeout(300)  # two hundred callers come one after the other, each with its TLS
def test_after_a_killed_agent_every_caller_gets_its_end_and_a_reason_at_once(world: TowerWorld) -> None:
    caller, why = Caller(world.kubeconfig(NAME)), f"no new link within {WINDOW:g} s"
    watchers = Watchers(caller)
    killed = time.time()
    world.members[NAME].agent.send(signal.SIGKILL)
    watchers.join()
    closed = the_line(world.server.log, "tunnel-closed", why)
    assert closed["time"] - killed < WINDOW + 2.0, "a reset link is noticed at once, and waits its window"
    took = max(watchers.ends) - closed["time"]
    print(f"{WATCHERS} callers had their ends {took:.2f} s after the server knew")
    assert took < AT_ONCE
    wait_until(lambda: len(lines(world.server.log, "connection", why)) >= WATCHERS, "an audit line each", BACK)
    assert all(entry["outcome"].startswith("cut: ") for entry in lines(world.server.log, "connection", why))
    answer = caller.ask("/later")
    assert (answer.status, b"TWR201" in answer.body) == (503, True)
    world.restart_agent(NAME)


@pytest.mark.timeout(300)
def test_after_a_killed_server_callers_end_at_once_and_so_do_their_requests_at_the_member(world: TowerWorld) -> None:
    agent, caller = world.members[NAME].agent, Caller(world.kubeconfig(NAME))
    watchers = Watchers(caller)
    killed = time.time()
    world.server.send(signal.SIGKILL)
    watchers.join()
    took = max(watchers.ends) - killed
    print(f"{WATCHERS} callers had their ends {took:.2f} s after the server's end")
    assert took < AT_ONCE
    world.stop_server()
    world.start()
    told: list[dict[str, Any]] = []

    def found_out() -> bool:  # by the next process' refusal, or at the end of the window if that is earlier
        down = lines(agent.log, "tunnel-down")
        told[:] = [each for each in down if re.search("no such tunnel for this agent|no new link within", each["text"])]
        return bool(told)

    wait_until(found_out, "the agent finds out", BACK)
    ended: list[dict[str, Any]] = []

    def all_ended() -> bool:
        ended[:] = [entry for entry in lines(agent.log, "request", "/watch") if entry["time"] > killed]
        return len(ended) == WATCHERS

    wait_until(all_ended, "no request left at the member", BACK)
    took = max(entry["time"] for entry in ended) - told[0]["time"]
    print(f"{WATCHERS} requests had left the member {took:.2f} s after the agent knew")
    assert took < AT_ONCE


# ---- a full disk -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """A file system of 2 MiB at `folder`; what is yielded fills it, as long as its block lasts."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True, timeout=10)

    @contextlib.contextmanager
    def full() -> Iterator[None]:
        with (folder / "filler").open("wb", buffering=0) as file:
            while os.statvfs(folder).f_bavail:
                file.write(bytes(4096))
        yield
        (folder / "filler").unlink()

    try:
        yield full
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True, timeout=10)


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system can be mounted by root alone")
def test_a_full_disk_stops_what_must_be_kept_and_nothing_else(place: Path, member: BackendMember) -> None:
    with small_disk(place / "d" / "server") as full, joined(place / "d", member) as world:
        caller = Caller(world.kubeconfig(NAME))
        with watching(caller) as goes_on, full():
            refused = world.towerctl("add", "cluster", "other", check=False)
            said = refused.stderr.decode()
            assert refused.code != 0
            assert "TWR105" in said
            assert f"make room on the file system of {place}/d/server" in said
            checked = world.towerctl("check", check=False)
            assert (checked.code, b"TWR105" in checked.stdout) == (1, True), checked.stdout + checked.stderr
            assert f"make room on the file system of {place}/d/server".encode() in checked.stdout
            assert caller.ask("/during").status == 200
            goes_on()
            world.server.send(signal.SIGKILL)  # what was acknowledged before is there again, and may be served
            world.stop_server()
            world.start()
            world.until_state(NAME, "Connected", deadline=BACK)
            assert caller.ask("/restarted").status == 200
            assert world.towerctl("add", "cluster", "other", check=False).code != 0
        world.towerctl("add", "cluster", "other")
        assert [item["name"] for item in world.call("GET", "/v1/clusters")[1]["items"]] == [NAME, "other"]


# ---- no descriptors left ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def descriptors(child: Child, spare: int) -> Iterator[None]:
    """The process may open so many more than it has, as long as the block lasts."""
    used = max(map(int, os.listdir(f"/proc/{child.pid}/fd"))) + 1
    before = resource.prlimit(child.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (used + spare, before[1]))
    try:
        yield
    finally:
        resource.prlimit(child.pid, resource.RLIMIT_NOFILE, before)


def test_a_server_without_descriptors_turns_callers_away_and_keeps_its_tunnels_and_operators(
    world: TowerWorld, net: tuple[Network, int]
) -> None:
    caller = Caller(world.kubeconfig(NAME))
    with watching(caller) as goes_on:
        with descriptors(world.server, 20), contextlib.ExitStack() as stack:
            with logs(world.server.log, "callers-refused", "TWR117", "LimitNOFILE"):
                held = [stack.enter_context(bare) for bare in map(_connected, [caller] * 60) if bare is not None]
            wait_until(lambda: _kept(held) < 20, "callers that are turned away", BACK)
            before = _resumed(world)
            net[0].do("cut")
            wait_until(lambda: _resumed(world) > before, "the tunnel taken up again, with all callers", BACK)
            assert world.towerctl("get", "clusters").code == 0
            began, spent = time.monotonic(), _cpu(world.server.pid)
            while (took := time.monotonic() - began) < 2.0:
                goes_on()
            assert _cpu(world.server.pid) - spent < 0.5 * took, "it waits, and does not try again and again"
        assert caller.ask("/after").status == 200
        goes_on()


def _connected(caller: Caller) -> socket.socket | None:
    """A bare connection, unless it is turned away before it is there."""
    try:
        return caller.plain()
    except ConnectionResetError:
        return None


def _kept(held: list[socket.socket]) -> int:
    """How many have not been ended by the other side."""
    kept = 0
    for each in held:
        each.setblocking(False)
        try:
            kept += each.recv(1) != b""
        except BlockingIOError:
            kept += 1
        except ConnectionResetError:
            continue
    return kept


def _resumed(world: TowerWorld) -> int:
    return len(lines(world.server.log, "tunnel-resumed"))


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_an_agent_without_descriptors_says_so_and_blames_nobody_else(world: TowerWorld) -> None:
    caller = Caller(world.kubeconfig(NAME))
    with watching(caller) as goes_on:
        with descriptors(world.members[NAME].agent, 3), contextlib.ExitStack() as stack:
            refusal = _until_refused(caller, stack)
            status = json.loads(refusal.body)
            assert (refusal.status, status["kind"]) == (503, "Status")
            for said in ("Too many open files", "TWR117", "LimitNOFILE"):
                assert said in status["message"]
            goes_on()
        assert caller.ask("/after").status == 200
        goes_on()


def _until_refused(caller: Caller, stack: contextlib.ExitStack) -> Answer:
    """Watches more and more, until one gets another answer."""
    for _ in range(30):
        connection = stack.enter_context(caller.connect())
        connection.send(connection.request("GET", "/watch"))
        connection._reader.peek(1)
        if not connection._reader.peek(100).startswith(b"HTTP/1.1 200"):
            return connection.answer()
        connection.line()
    raise AssertionError("30 connections to the apiserver with 3 descriptors")


# ---- a clock that jumps ----------------------------------------------------------------------------------------------

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
CLOCKS = {
    "FAKETIME_CACHE_DURATION": "1",
    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    "DONT_FAKE_MONOTONIC": "1",
    "FAKETIME_DONT_RESET": "1",
}


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed (apt-get install libfaketime)")
def test_a_clock_that_jumps_ends_no_tunnel_and_no_stream_and_who_is_refused_is_told_why(
    place: Path, member: BackendMember
) -> None:
    """One process at a time, a day at most: beyond that certificates are rightly over."""
    files = {program: place / f"{program}.offset" for program in ("tower-server", "tower-agent")}
    preload = CLOCKS | {"LD_PRELOAD": str(FAKETIME)}
    environments = {program: preload | {"FAKETIME_TIMESTAMP_FILE": str(file)} for program, file in files.items()}
    for file in files.values():
        file.write_text("+0")
    with joined(place / "c", member, environments=environments) as world:
        children = {"tower-server": world.server, "tower-agent": world.members[NAME].agent}
        caller, before = Caller(world.kubeconfig(NAME)), tunnels(world, NAME)
        with watching(caller) as goes_on:
            for program, hours in itertools.product(files, (12, -2, 0)):
                files[program].write_text(f"{hours:+d}h")
                wait_until(
                    lambda program=program, hours=hours: abs(_clock(children[program], caller) - hours * 3600) < 600,
                    f"the clock of {program} {hours} hours off",
                    BACK,
                )
                answer = caller.ask("/jumped")
                if (program, hours) == ("tower-agent", -2):  # the certificate's time has not come, as it sees it
                    assert (answer.status, b"correct the clock that is wrong" in answer.body) == (401, True)
                else:
                    assert answer.status == 200
                goes_on()
            world.until_state(NAME, "Connected", deadline=BACK)
        assert tunnels(world, NAME) == before


def _clock(child: Child, caller: Caller) -> float:
    """How far the clock of a process is off, as what it logs of a request shows."""
    caller.ask("/time")
    last = next(line for line in reversed(whole_lines(child.log)) if '"time"' in line)
    return datetime.fromisoformat(json.loads(last)["time"]).timestamp() - time.time()
