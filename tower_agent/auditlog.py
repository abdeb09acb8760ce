"""One audit line a request, cheap enough for the hot path.

The general log costs a hundred times more, because it redacts whatever it is given; here the fields are fixed, and none
can hold a secret but the path (written without its query) and what a caller calls itself, which are looked over. Lines
of a short while leave in one write, so that no answer waits for it, and look like those of the general log.
"""

from __future__ import annotations

import asyncio
import sys
import time
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted
from typing import Final, TextIO

from daemon.log import get_logger
from daemon.redact import redact_text
from gateway.audit import RequestRecord
from gateway.decide import BEARER

FLUSH_AFTER: Final = 0.05  # seconds; what a killed process may lose
MAX_LINES: Final = 256

log = get_logger(__name__)


@lru_cache(maxsize=1024)  # callers poll and list the same few paths
def _path(path: str) -> str:
    return quoted(redact_text(path))


@lru_cache(maxsize=1024)  # a kept connection says the same with each request
def _parties(connection: str, caller: str, who: str) -> str:
    named = who if who == BEARER else redact_text(who)
    return f'"connection": {quoted(connection)}, "caller": {quoted(caller)}, "who": {quoted(named)}'


class AuditLog:
    """Writes the requests of one host to the log's stream."""

    def __init__(self, host: str, *, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._head = f'{{"room": "audit", "event": "request", "level": "info", "host": {quoted(host)}, "audit_id": "'
        self._lines: list[str] = []
        self._second = 0
        self._time = ""
        self._lost = 0

    def write(self, record: RequestRecord) -> None:
        """Queue one line; it leaves within FLUSH_AFTER."""
        (audit_id, connection, caller, who, verb, method, path, code, fault, bytes_in, bytes_out, took, _) = record
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._time = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_AFTER, self.flush)
        elif len(self._lines) >= MAX_LINES:
            self.flush()
        self._lines.append(
            f'{self._head}{audit_id}", {_parties(connection, caller, who)}, "verb": "{verb}", '
            f'"method": {quoted(method)}, "path": {_path(path)}, '
            f'"code": {code}, "fault": "{fault}", "bytes_in": {bytes_in}, "bytes_out": {bytes_out}, '
            f'"duration": {took:.6f}, "time": "{self._time}.{int((now - second) * 1000):03d}Z"}}\n'
        )

    def flush(self) -> None:
        """Write what is queued. A stream that takes nothing is counted, and said once it takes lines again."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            self._stream.write("".join(lines))
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._lost += len(lines)
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            log.warning("audit-lines-lost", count=lost)
