"""Where the gateway's records go: one audit line a request, metrics, and the figures that the heartbeat carries."""

from __future__ import annotations

from typing import Any

from daemon.log import get_logger
from daemon.metrics import AgentMetrics
from gateway.audit import RequestRecord
from tower_agent.auditlog import AuditLog

log = get_logger(__name__)
_UNTIMED = frozenset({"watch", "connect"})


class RequestObserver:
    """The gateway's observer of one host."""

    def __init__(self, host: str, metrics: AgentMetrics) -> None:
        self.requests = 0
        self.failures = 0
        self.seconds = 0.0
        self._host = host
        self._audit = AuditLog(host)
        self._metrics = metrics
        self._tally = metrics.tally

    def request(self, record: RequestRecord) -> None:
        """One request has ended."""
        self.requests += 1
        self.failures += record.code >= 500
        self._tally.count(record.verb, record.code, record.bytes_in, record.bytes_out)
        if record.answered_after and record.verb not in _UNTIMED:
            self.seconds += record.answered_after
            self._tally.time(record.verb, record.answered_after)
        if record.fault:
            self._metrics.denied.labels(record.fault).inc()
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
