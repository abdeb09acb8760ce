"""Callers that go on asking while something happens to the tower, and keep what did not go as it should.

They ask as careful clients do: a kept connection is used until its answer says `close`, and a watch is asked for again
from where it ended, if it ended as the apiserver ends one. Nothing is ever asked twice because it failed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.kubernetes.rawhttp import Connection
from tests.lab.processes import wait_until
from tests.loopback.callers import Caller

PAUSE = 0.02
JOIN = 60.0


class Load:
    """Threads that ask; `failures` says what went wrong, `done` how much went well."""

    def __init__(self, caller: Caller) -> None:
        self.failures: list[str] = []
        self.done = 0
        self.events: list[int] = []
        self.watches = 0
        self._caller = caller
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, *asks: Callable[[], None]) -> None:
        for ask in asks:
            thread = threading.Thread(target=self._guarded, args=(ask,), name=ask.__name__, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(JOIN)
            if thread.is_alive():
                self.failures.append(f"{thread.name} never ends")

    def more(self, what: int = 5) -> None:
        """Wait until so many more requests and events have come through."""
        done, events = self.done, len(self.events)
        wait_until(
            lambda: bool(self.failures) or (self.done >= done + what and len(self.events) >= events + what),
            f"{what} more answers and events",
            JOIN,
        )

    def _guarded(self, ask: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                ask()
            except (OSError, http.client.HTTPException, AssertionError, ValueError) as error:
                self.failures.append(f"{time.time():.3f} {ask.__name__}: {type(error).__name__}: {error}")
                self._stop.wait(PAUSE)

    def ask_anew(self) -> None:
        """One request on a connection of its own."""
        answer = self._caller.ask("/anew", "Connection: close")
        assert answer.status == 200, answer
        self.done += 1
        self._stop.wait(PAUSE)

    def ask_on(self) -> None:
        """Requests on one connection, until an answer says that it was the last one."""
        with self._caller.connect() as connection:
            while not self._stop.is_set():
                connection.send(connection.request("GET", "/on"))
                answer = http.client.HTTPResponse(connection._reader)  # type: ignore[arg-type]
                answer.begin()
                body = answer.read()
                assert answer.status == 200, body
                self.done += 1
                if answer.will_close:
                    return
                self._stop.wait(PAUSE)

    def watch(self) -> None:
        """One watch, until it ends cleanly."""
        after = f"&resourceVersion={self.events[-1]}" if self.events else ""
        with self._caller.connect() as connection:
            connection.send(connection.request("GET", f"/api/v1/ticks?watch=true{after}"))
            status = connection.line()
            assert status.startswith(b"HTTP/1.1 200 "), status
            while connection.line() != b"\r\n":
                pass
            self.watches += 1
            for event in _chunks(connection):
                self.events.append(int(event["object"]["metadata"]["resourceVersion"]))
                if self._stop.is_set():
                    return

    def check(self) -> None:
        """Nothing failed, and no event is missing or came twice."""
        assert self.failures == []
        assert self.events == list(range(self.events[0], self.events[0] + len(self.events)))


def _chunks(connection: Connection) -> Iterator[dict[str, Any]]:
    """Each chunk's document, until the last chunk and the end of the connection; anything else raises."""
    while size := int(connection.line() or b"nothing", 16):
        data = connection._reader.read(size)
        assert data is not None
        assert connection.line() == b"\r\n"
        yield json.loads(data)
    assert connection.line() == b"\r\n"
    assert connection.line() == b""


@contextlib.contextmanager
def loading(caller: Caller, *kinds: str) -> Iterator[Load]:
    """`kinds` are methods of Load; all of them when none is named."""
    made = Load(caller)
    made.start(*(getattr(made, kind) for kind in kinds or ("ask_anew", "ask_on", "watch")))
    try:
        made.more()
        yield made
    finally:
        made.stop()
