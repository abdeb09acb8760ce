"""One caller's way to the member's apiserver, straight or through the tunnel, and how two answers are compared.

A test does the same through both views of a caller and compares what came back, byte for byte; what differs by nature
(an age, the address that was dialled) is named here and replaced on both sides.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import tempfile
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.lab.controlplane import Done, run
from tests.lab.processes import LabError
from tests.lab.world import BIN

DEADLINE = 60.0
SPDY = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "false"}
TRANSPORTS: Mapping[str, Mapping[str, str]] = {"websocket": {}, "spdy": SPDY}
AGE = re.compile(rb"\b(?:\d+[smhd]){1,2}\b(?: ago)?")
BLANKS = re.compile(rb"[ \t]+")


@dataclass(frozen=True, slots=True)
class View:
    """A kubeconfig and the kubectl that reads it."""

    name: str
    kubectl_program: Path
    kubeconfig: Path
    folder: Path  # a home of its own: kubectl keeps what it discovered there

    @property
    def server(self) -> bytes:
        found = re.search(rb"server: (\S+)", self.kubeconfig.read_bytes())
        if found is None:
            raise LabError(f"{self.kubeconfig} names no server")
        return found[1]

    def argv(self, *arguments: str) -> list[str]:
        return [str(self.kubectl_program), "--kubeconfig", str(self.kubeconfig), *arguments]

    def environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"  # the credential plugin is found there
        return {"PATH": path, "HOME": str(self.folder), **extra}

    def kubectl(
        self, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None, deadline: float = DEADLINE
    ) -> Done:
        return run(self.argv(*arguments), self.environment(env or {}), stdin, deadline)

    def start(self, *arguments: str, env: Mapping[str, str] | None = None, tty: bool = False) -> Running:
        return Running(self.argv(*arguments), self.environment(env or {}), tty=tty)


@dataclass(frozen=True, slots=True)
class Pair:
    """The two views of one caller: the same user and groups, as the member's apiserver sees them."""

    caller: str
    direct: View
    tunnel: View

    def both(self) -> tuple[View, View]:
        return self.direct, self.tunnel


class Running:
    """A kubectl that runs: type into it, wait for what it prints, end it. A context manager that leaves nothing."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], *, tty: bool) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._out, self._err = Path(self._folder.name, "out"), Path(self._folder.name, "err")
        self._terminal: int | None = None
        self._shown = bytearray()  # by the terminal, as far as it was read
        with self._out.open("wb") as out, self._err.open("wb") as err:
            ends: tuple[int, int] = (subprocess.PIPE, out.fileno())
            if tty:
                self._terminal, other = pty.openpty()
                os.set_blocking(self._terminal, False)
                ends = other, other
            self._process = subprocess.Popen(
                list(argv), stdin=ends[0], stdout=ends[1], stderr=err, env=dict(env), start_new_session=True
            )
        if tty:
            os.close(ends[0])

    def type(self, data: bytes) -> None:
        if self._terminal is not None:
            os.write(self._terminal, data)
        else:
            assert self._process.stdin is not None
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def end_input(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    def resize(self, rows: int, columns: int) -> None:
        """As a terminal's window does; the process is told."""
        assert self._terminal is not None
        termios.tcsetwinsize(self._terminal, (rows, columns))
        self._process.send_signal(signal.SIGWINCH)  # the kernel tells only the terminal's own session

    @property
    def stdout(self) -> bytes:
        if self._terminal is None:
            return self._out.read_bytes()
        with contextlib.suppress(OSError):  # nothing more, or closed at the other end
            while piece := os.read(self._terminal, 65536):
                self._shown += piece
        return bytes(self._shown)

    @property
    def stderr(self) -> bytes:
        return self._err.read_bytes()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def until(self, text: bytes, *, deadline: float = DEADLINE) -> bytes:
        """Wait for `text` on standard output; returns all of it so far."""
        end = time.monotonic() + deadline
        while text not in (seen := self.stdout):
            if not self.running and text not in self.stdout:
                raise LabError(f"ended with {self._process.returncode} before {text!r}: {seen!r} {self.stderr!r}")
            if time.monotonic() > end:
                raise LabError(f"no {text!r} within {deadline:.0f} s: {seen[-500:]!r} {self.stderr[-500:]!r}")
            time.sleep(0.01)
        return seen

    def until_line(self, text: bytes, *, deadline: float = DEADLINE) -> list[bytes]:
        """Wait for a whole line with `text` in it; returns all lines so far."""
        end = time.monotonic() + deadline
        while not (seen := self.until(text, deadline=deadline)).endswith(b"\n"):
            if time.monotonic() > end:
                raise LabError(f"no end of the line after {text!r}: {seen[-500:]!r}")
            time.sleep(0.01)
        return seen.splitlines()

    def wait(self, *, deadline: float = DEADLINE) -> Done:
        try:
            code = self._process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise LabError(f"still runs after {deadline:.0f} s: {self.stdout[-500:]!r} {self.stderr!r}") from None
        return Done(code, self.stdout, self.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait(DEADLINE)
        self.end_input()
        if self._terminal is not None:
            os.close(self._terminal)
        self._folder.cleanup()


@dataclass(frozen=True, slots=True)
class Scrub:
    """What is replaced before two answers are compared: ages in tables, and pairs of words of the two sides."""

    ages: bool = False
    words: Sequence[tuple[bytes, bytes]] = field(default_factory=tuple)
    patterns: Sequence[bytes] = field(default_factory=tuple)

    def __call__(self, data: bytes, view: View) -> bytes:
        data = data.replace(view.server, b"https://SERVER").replace(view.server.removeprefix(b"https://"), b"SERVER")
        for word, replacement in self.words:
            data = data.replace(word, replacement)
        for pattern in self.patterns:
            data = re.sub(pattern, b"...", data)
        return BLANKS.sub(b" ", AGE.sub(b"AGE", data)) if self.ages else data


def assert_same(pair: Pair, direct: Done, tunnel: Done, scrub: Scrub | None = None) -> None:
    """Exit code, standard error and output of both are equal."""
    scrub = scrub or Scrub()
    assert tunnel.code == direct.code, f"direct {direct}, tunnel {tunnel}"
    assert scrub(tunnel.stderr, pair.tunnel) == scrub(direct.stderr, pair.direct)
    assert scrub(tunnel.stdout, pair.tunnel) == scrub(direct.stdout, pair.direct)
