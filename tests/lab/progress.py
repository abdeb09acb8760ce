"""Progress of long work on stderr: one line that lives on a terminal, plain lines elsewhere (a CI log, a file).

A watcher always sees what is being done, for how long, and what comes after. Plain output repeats itself every
`PLAIN_INTERVAL` seconds, so that no CI takes a long compile for a hang.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

PLAIN_INTERVAL = 20.0
SPINNER = "|/-\\"


class Progress:
    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream or sys.stderr, clock
        self._live = self._stream.isatty()

    def say(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()

    @contextlib.contextmanager
    def step(self, name: str, *, following: Sequence[str] = ()) -> Iterator[Step]:
        step = Step(name, following, self._stream, self._clock, live=self._live)
        try:
            yield step
        finally:
            step.clear()


class Step:
    def __init__(
        self, name: str, following: Sequence[str], stream: TextIO, clock: Callable[[], float], *, live: bool
    ) -> None:
        self._name, self._stream, self._clock, self._live = name, stream, clock, live
        self._next = f"; next: {', '.join(following)}" if following else ""
        self._started = clock()
        self._told = self._started
        self._turn = 0
        if not live:
            self._line(f"  {name} ...{self._next}")

    def now(self, doing: str) -> None:
        """Called often; writes only what is worth a line."""
        now = self._clock()
        text = f"{self._name}  {self._elapsed()}  {doing}{self._next}"
        if self._live:
            self._turn += 1
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r\x1b[K{f'{SPINNER[self._turn % 4]} {text}'[:width]}")
            self._stream.flush()
        elif now - self._told >= PLAIN_INTERVAL:
            self._told = now
            self._line(f"  {text}")

    def done(self, text: str) -> None:
        self.clear()
        self._line(f"  {self._name}  {self._elapsed()}  {text}")

    def clear(self) -> None:
        if self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _elapsed(self) -> str:
        seconds = int(self._clock() - self._started)
        return f"{seconds // 60}:{seconds % 60:02d}"

    def _line(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()
