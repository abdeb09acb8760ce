"""Writes one audit line for each request, cheaply enough for the hot path.

The general log costs a hundred times more, since it redacts whatever it is given. Here the fields are fixed, and only
two of them could hold a secret: the path, which is written without its query, and what a caller calls itself. Those are
redacted. The lines of a short while are written together, so that no answer waits for them; they look like those of the
general log.
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


_method = lru_cache(maxsize=16)(quoted)


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
        self._records: list[tuple[float, RequestRecord]] = []
        self._lost = 0

    def write(self, record: RequestRecord) -> None:
        """Queue one record; its line leaves within FLUSH_AFTER."""
        records = self._records
        if not records:
            asyncio.get_running_loop().call_later(FLUSH_AFTER, self.flush)
        elif len(records) >= MAX_LINES:
            self.flush()
        self._records.append((time.time(), record))

    def _lines(self, records: list[tuple[float, RequestRecord]]) -> list[str]:
        head, lines = self._head, []
        last, text = 0, ""
        for at, record in records:
            (audit_id, connection, caller, who, verb, method, path, code, fault, bytes_in, bytes_out, took, _) = record
            second = int(at)
            if second != last:
                last, text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            lines.append(
                f'{head}{audit_id}", {_parties(connection, caller, who)}, "verb": "{verb}", '
                f'"method": {_method(method)}, "path": {_path(path)}, '
                f'"code": {code}, "fault": "{fault}", "bytes_in": {bytes_in}, "bytes_out": {bytes_out}, '
                f'"duration": {took:.6f}, "time": "{text}.{int((at - second) * 1000):03d}Z"}}\n'
            )
        return lines

    def flush(self) -> None:
        """Write what is queued. A stream that takes nothing is counted, and said once it takes lines again."""
        records, self._records = self._records, []
        if not records:
            return
        lines = self._lines(records)
        try:
            self._stream.write("".join(lines))
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._lost += len(lines)
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            log.warning("audit-lines-lost", count=lost)
