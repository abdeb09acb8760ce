"""Where the gateway's records go: one audit line a request, and the figures that the heartbeat carries.

Metric children are bound once for each pair of labels, since a request costs one look-up here and nothing more.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import Counter, Histogram

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
        self._to_member, self._from_member = map(metrics.stream_bytes.labels, ("to_member", "from_member"))
        self._counters: dict[tuple[str, int], Counter] = {}
        self._histograms: dict[str, Histogram] = {}

    def request(self, record: RequestRecord) -> None:
        """One request has ended."""
        self.requests += 1
        self.failures += record.code >= 500
        key = (record.verb, record.code)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = self._metrics.requests.labels(record.verb, str(record.code))
        counter.inc()
        self._to_member.inc(record.bytes_in)
        self._from_member.inc(record.bytes_out)
        if record.verb not in _UNTIMED and record.answered_after:
            self.seconds += record.answered_after
            histogram = self._histograms.get(record.verb)
            if histogram is None:
                histogram = self._histograms[record.verb] = self._metrics.request_duration.labels(record.verb)
            histogram.observe(record.answered_after)
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
