from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemon.systemd import Notifier, inherited_listeners

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """The service manager's end: NOTIFY_SOCKET and the socket behind it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(30)
        name = str(tmp_path / "notify") if request.param == "path" else f"@tower-test-{os.getpid()}"
        sock.bind(name.replace("@", "\0", 1))
        yield name, sock


def test_messages_arrive_at_a_path_and_at_an_abstract_socket(manager: tuple[str, socket.socket]) -> None:
    name, sock = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready("3 clusters,\n2 ready")
    notifier.stopping()
    notifier.stopping()
    notifier.close()
    assert sock.recv(999) == b"READY=1\nSTATUS=3 clusters, 2 ready"
    assert sock.recv(999) == b"STOPPING=1"
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(999)


def test_without_systemd_nothing_happens() -> None:
    notifier = Notifier({})
    notifier.ready("x")
    notifier.stopping()
    notifier.close()
    assert notifier.watchdog_interval is None


def test_a_manager_that_does_not_listen_is_said_once_and_stops_nothing(tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    with capture_logs() as logs:
        notifier.ready("x")
        notifier.stopping()
    notifier.close()
    assert [entry["event"] for entry in logs] == ["notify-failed"]


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({"WATCHDOG_USEC": "10000000"}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_beaten_at_half_its_time(environ: dict[str, str], interval: float | None) -> None:
    assert Notifier(environ).watchdog_interval == interval


@pytest.mark.asyncio
async def test_the_beat_goes_on_until_cancelled(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000"})
        task = asyncio.create_task(notifier.beat())
        for _ in range(3):
            assert await asyncio.get_running_loop().sock_recv(sock, 99) == b"WATCHDOG=1"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        notifier.close()


def test_listeners_of_another_process_are_left_alone() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "PATH": "x"}
    assert inherited_listeners(environ) == {}
    assert environ == {"PATH": "x"}
    assert inherited_listeners({}) == {}
    assert inherited_listeners({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"}) == {}


CHILD = """
import os, sys
for target, fd in enumerate(map(int, sys.argv[1].split(",")), 3):
    os.dup2(fd, target)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(target - 2), LISTEN_FDNAMES="tunnel::tunnel")
from daemon.faults import TowerError
from daemon.systemd import inherited_listeners
try:
    found = inherited_listeners()
except TowerError as exc:
    sys.exit(str(exc))
for name, socks in sorted(found.items()):
    for sock in socks:
        print(name, sock.getsockname()[1], sock.getblocking(),
              os.get_inheritable(sock.fileno()), "LISTEN_FDS" in os.environ)
        sock.close()
"""


def child(*sockets: socket.socket) -> subprocess.CompletedProcess[str]:
    """Hands `sockets` on as descriptors 3 and up, as systemd does; copies above 20 keep them clear of each other."""
    fds = [fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 20) for sock in sockets]
    try:
        return subprocess.run(
            [sys.executable, "-c", CHILD, ",".join(map(str, fds))],
            pass_fds=fds,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=20,
        )
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.slow
def test_listeners_come_by_name_and_are_not_passed_to_children() -> None:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [sock.getsockname()[1] for sock in socks]
        done = child(*socks)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"tunnel {ports[0]} False False False",
        f"tunnel {ports[2]} False False False",
        f"unknown {ports[1]} False False False",
    ]


@pytest.mark.slow
def test_a_descriptor_that_is_no_listener_is_refused_with_a_mend() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        done = child(datagram)
    assert done.returncode == 1
    assert "TWR103: the inherited descriptor 3 (tunnel) is not a listening stream socket" in done.stderr
    assert "ListenStream=" in done.stderr
