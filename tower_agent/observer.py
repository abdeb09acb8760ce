"""Receives the gateway's records: writes audit lines, counts metrics, and keeps the figures for the heartbeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from daemon.log import get_logger
from daemon.metrics import AgentMetrics
from gateway.audit import RequestRecord
from tower_agent.auditlog import AuditLog

log = get_logger(__name__)
UNREACHABLE: Final = frozenset({"TWR301", "TWR303"})
"""Faults of a request that found no apiserver: the next probe had better not wait for its turn."""
_UNTIMED = frozenset({"watch", "connect"})


class RequestObserver:
    """The gateway's observer of one host."""

    def __init__(self, host: str, metrics: AgentMetrics, *, unreachable: Callable[[], None]) -> None:
        self.requests = 0
        self.failures = 0
        self.seconds = 0.0
        self._host = host
        self._audit = AuditLog(host)
        self._metrics = metrics
        self._unreachable = unreachable
        self._tally = metrics.tally

    def request(self, record: RequestRecord) -> None:
        """One request has ended."""
        (_, _, _, _, verb, _, _, code, fault, bytes_in, bytes_out, _, answered_after) = record
        self.requests += 1
        if code >= 500:
            self.failures += 1
        timed = answered_after > 0 and verb not in _UNTIMED
        if timed:
            self.seconds += answered_after
        self._tally.count(verb, code, bytes_in, bytes_out, answered_after if timed else None)
        if fault:
            self._metrics.denied.labels(fault).inc()
            if fault in UNREACHABLE:
                self._unreachable()
        self._audit.write(record)

    def close(self) -> None:
        """Write what is queued; for the end."""
        self._audit.flush()

    def tls_failed(self, failure: str, text: str, caller_address: str, connection_id: str) -> None:
        """A caller's TLS came to nothing."""
        self._metrics.caller_tls_failures.inc()
        log.info(
            "caller-tls-failed",
            host=self._host,
            fault="TWR413",
            failure=failure,
            text=text,
            caller=caller_address,
            connection=connection_id,
        )

    def figures(self) -> dict[str, Any]:
        """As they stand in a status message: totals since the process began."""
        return {"count": self.requests, "failed": self.failures, "seconds": round(self.seconds, 3)}
