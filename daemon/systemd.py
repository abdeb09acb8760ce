"""What systemd and a process say to each other: readiness messages out, listening sockets in.

Outside of systemd all of this is silent. Messages are one datagram each and never block or fail the work: a service
manager that does not listen is its own problem, said once in the log.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import MutableMapping
from typing import Final

from daemon.faults import TowerError
from daemon.log import get_logger

FIRST_FD: Final = 3
log = get_logger(__name__)


class Notifier:
    """Sends READY with a STATUS, STOPPING and WATCHDOG to NOTIFY_SOCKET (a path, or `@name` for an abstract socket)."""

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        env = os.environ if environ is None else environ
        self._address = env.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        self._complained = False
        self._stopping = False
        self.watchdog_interval = _watchdog(env)

    def ready(self, status: str = "") -> None:
        self._send("READY=1" + (f"\nSTATUS={_line(status)}" if status else ""))

    def stopping(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._send("STOPPING=1")

    async def beat(self) -> None:
        """Says that the loop turns, at half the watchdog's time, until cancelled."""
        assert self.watchdog_interval is not None
        while True:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_interval)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)
            address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
            self._socket.sendto(message.encode(), address)
        except OSError as exc:
            if not self._complained:
                log.warning("notify-failed", socket=self._address, why=exc.strerror or str(exc))
            self._complained = True


def inherited_listeners(environ: MutableMapping[str, str] | None = None) -> dict[str, list[socket.socket]]:
    """The listening sockets that systemd passed on, by name; the variables are taken away from child processes.

    Only those meant for this very process (LISTEN_PID); unnamed ones are called `unknown`, as systemd does.
    Raises TowerError TWR103 when a descriptor is not a listening stream socket.
    """
    env = os.environ if environ is None else environ
    pid, count, names = (env.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    labels = names.split(":") if names else []
    found: dict[str, list[socket.socket]] = {}
    for index in range(int(count)):
        fd = FIRST_FD + index
        os.set_inheritable(fd, False)
        label = labels[index] if index < len(labels) and labels[index] else "unknown"
        try:
            sock = socket.socket(fileno=fd)
            listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as exc:
            raise _not_a_listener(fd, label) from exc
        if not listens:
            sock.detach()
            raise _not_a_listener(fd, label)
        sock.setblocking(False)
        found.setdefault(label, []).append(sock)
    return found


def _not_a_listener(fd: int, label: str) -> TowerError:
    return TowerError(
        "TWR103",
        f"the inherited descriptor {fd} ({label}) is not a listening stream socket",
        mend="in the .socket unit use ListenStream= with Accept=no",
    )


def _watchdog(env: MutableMapping[str, str]) -> float | None:
    """Seconds between two beats: half of WATCHDOG_USEC, if this process is the one that is watched."""
    usec, pid = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2_000_000


def _line(text: str) -> str:
    return " ".join(text.split())
