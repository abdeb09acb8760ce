"""What the tests of the command line share: running a command, and peers that misbehave at a Unix socket."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from towerctl.main import run


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    def refused(self, *parts: str, code: int = 1) -> None:
        """A clear refusal: the exit code, nothing on standard output, and every part in the text."""
        assert self.code == code, self
        assert self.out == "", self
        for part in parts:
            assert part in self.err, f"{part!r} is not in:\n{self.err}"
        assert "Traceback" not in self.err


class Shell:
    def __init__(self, capsys: pytest.CaptureFixture[str], *, home: Path, socket: Path) -> None:
        self._capsys = capsys
        self.home = home
        self.socket = socket

    def __call__(self, *arguments: str) -> Ran:
        self._capsys.readouterr()
        try:
            code = run(list(arguments))
        except SystemExit as end:  # completion ends so
            code = int(end.code or 0)
        text = self._capsys.readouterr()
        return Ran(code, text.out, text.err)

    def ok(self, *arguments: str) -> str:
        """Standard output of a command that must succeed."""
        ran = self(*arguments)
        assert ran.code == 0, ran
        return ran.out


@contextlib.contextmanager
def peer(path: Path, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """A process behind a Unix socket that does to each connection what `answer` says."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(8)
    stopped = threading.Event()

    def serve() -> None:
        while not stopped.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(30)
                with contextlib.suppress(OSError):
                    answer(connection)

    thread = threading.Thread(target=serve, name="peer")
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(30)


def http(status: str, body: str) -> Callable[[socket.socket], None]:
    """Reads one request and answers it."""

    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(
            f"HTTP/1.1 {status}\r\nContent-Length: {len(body.encode())}\r\nConnection: close\r\n\r\n{body}".encode()
        )

    return answer
