"""A server as a service manager runs it: its ports are the manager's, and outlive each of its processes."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

from tests.lab.world import BIN, ROOT, TowerWorld

STOP_DEADLINE = 20.0
# As systemd does it: the descriptors from 3 on, the variables naming this very process, then the program.
LAUNCH = """
import fcntl, os, sys
names, fds, program = sys.argv[1], [int(fd) for fd in sys.argv[2].split(",")], sys.argv[3:]
kept = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds]  # out of the way of 3 and on
for index, fd in enumerate(kept):
    os.dup2(fd, 3 + index, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names)
os.execv(program[0], program)
"""


def heard(listening: socket.socket, what: str) -> None:
    """Waits until a service says `what` to its manager."""
    while what not in listening.recv(4096).decode().splitlines():
        pass


class Managed:
    """One whose ports `held` are."""

    def __init__(self, world: TowerWorld, environment: dict[str, str], held: dict[str, socket.socket]) -> None:
        self._world, self._environment, self._held = world, environment, held
        self._count = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """A process of it, stopped at the end unless it is dead already."""
        self._count += 1
        fds = [sock.fileno() for sock in self._held.values()]
        argv = [sys.executable, "-c", LAUNCH, ":".join(self._held), ",".join(map(str, fds))]
        argv += [str(BIN / "tower-server"), "run", "--config", str(self._world.config)]
        with (self._world.folder / f"managed-{self._count}.log").open("wb") as log:
            process = subprocess.Popen(
                argv, pass_fds=fds, env=self._world.environment() | self._environment, stderr=log, cwd=ROOT
            )
        try:
            yield process
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(STOP_DEADLINE) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
