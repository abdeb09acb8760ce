"""Child processes that belong to whoever started them: a log file each, waits with deadlines, nothing left behind.

Each child leads a session of its own (a Ctrl-C reaches the owner alone, who then stops children in order) and is killed
by the kernel if its owner dies without stopping it (`setpriv --pdeathsig`). A child may run inside a network namespace.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

STOP_DEADLINE = 30.0
KILL_DEADLINE = 20.0
POLL = 0.05
# Outside of Linux' ephemeral range (32768 up), where an outgoing connection could take the port before its owner binds
# it, and of the range that a tower server allocates from.
PORTS = range(20000, 32000)

_given: set[int] = set()

ADOPTED: set[int] = set()
"""Children that were started during a test and belong to a wider fixture (an agent that was started again)."""


class LabError(Exception):
    """Something of the lab did not come up, or ended; the text says what, and shows the end of its log."""


class Started:
    """What runs from `start` to `stop`, or for the time of a context; a start that fails leaves nothing."""

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> object:
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


class Child:
    """One owned process; `stop` is idempotent and returns its exit code."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str | os.PathLike[str]],
        *,
        log: Path,
        namespace: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name, self.log = name, log
        inside = ["ip", "netns", "exec", namespace] if namespace else []
        guard = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*guard, *inside, *map(os.fspath, argv)],
                stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=True,
            )
        if stdin is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it ended already: its exit code and log say why
                self._process.stdin.write(stdin)
                self._process.stdin.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    def tail(self, lines: int = 20) -> str:
        return tail(self.log, lines)

    def send(self, number: signal.Signals) -> None:
        if self.returncode is None:
            self._process.send_signal(number)

    def wait(self, deadline: float) -> int:
        try:
            return self._process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name} still runs after {deadline:.0f} s\n{self.tail()}") from None

    def stop(self, deadline: float = STOP_DEADLINE) -> int:
        """Ask it to end, and make it end; the whole session goes, so that nothing of its own outlives it."""
        self.send(signal.SIGTERM)
        try:
            code = self._process.wait(deadline)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait(KILL_DEADLINE)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return code

    def until(self, ready: Callable[[], bool], what: str, deadline: float) -> None:
        """Wait until `ready()`; a child that ends first, or a deadline, is a LabError with the end of its log."""
        end = time.monotonic() + deadline
        while not ready():
            if (code := self.returncode) is not None:
                raise LabError(f"{self.name} ended with {code} before {what}; log {self.log}:\n{self.tail()}")
            if time.monotonic() > end:
                raise LabError(f"waited {deadline:.0f} s in vain: {what}; the end of {self.log}:\n{self.tail()}")
            time.sleep(POLL)


def wait_until(ready: Callable[[], bool], what: str, deadline: float) -> None:
    end = time.monotonic() + deadline
    while not ready():
        if time.monotonic() > end:
            raise LabError(f"waited {deadline:.0f} s in vain: {what}")
        time.sleep(POLL)


def whole_lines(log: Path) -> list[str]:
    """What somebody who still writes has written so far, without a line of which only half is there."""
    text = log.read_text(errors="replace")
    return text[: text.rfind("\n") + 1].splitlines()


def tail(path: Path, lines: int = 20) -> str:
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return "    (no log)"
    return "\n".join("    " + line[:400] for line in text.splitlines()[-lines:]) or "    (empty log)"


def free_ports(count: int, *, host: str = "127.0.0.1") -> list[int]:
    """Ports that nothing listens on now, and that were not given to anybody who may not have bound them yet."""
    chosen: list[int] = []
    for port in random.sample(PORTS, k=len(PORTS)):
        if port in _given:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
        chosen.append(port)
        _given.add(port)
        if len(chosen) == count:
            return chosen
    raise LabError(f"no {count} free ports between {PORTS.start} and {PORTS.stop} on {host}")
