"""Every metric of both processes: prefix `tower_`, base units, bounded labels.

Rules: the label of a cluster is `member_cluster` (`cluster` collides with Prometheus' external labels) and is set only
after authentication; every other label has a fixed list of values; never a caller, path, address or tunnel id. Children
of a cluster are bound once (`ServerMetrics.cluster(name)`) and taken away when the cluster is deleted, so that neither
the hot path looks labels up nor a deleted cluster stays in the output.
"""

from __future__ import annotations

import asyncio
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.process_collector import ProcessCollector

from daemon.tally import RequestTally

STATES: Final = ("NeverConnected", "TunnelDown", "ApiserverDown", "AuthFailed", "Degraded", "Connected", "Unknown")
OPEN_RESULTS: Final = ("ok", "no_tunnel", "refused", "limit", "timeout", "lost")
RESUME_RESULTS: Final = ("ok", "refused", "expired")
HOLD_RESULTS: Final = ("tunnel", "in_vain", "left")
DIRECTIONS: Final = ("to_member", "from_member")
M: Final = "member_cluster"
_FAST: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LAG_INTERVAL: Final = 0.5
K = TypeVar("K", bound=MetricWrapperBase)


class _Metrics:
    """A registry of one process with what both kinds of process have."""

    def __init__(self, *, version: str) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._per_cluster: list[MetricWrapperBase] = []
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.build_info = self._gauge("build_info", "Version of this process; always 1.", "version")
        self.build_info.labels(version).set(1)
        self.event_loop_lag = self._histogram(
            "event_loop_lag_seconds", "How late a timer of the event loop fired.", buckets=_FAST
        )
        self.certificate_expiration = self._gauge(
            "certificate_expiration_timestamp_seconds",
            "When a certificate expires, in seconds since 1970.",
            "kind",
            M,
        )
        self.certificate_renewals = self._counter(
            "certificate_renewals_total", "Renewals of certificates by kind and result.", "kind", "result"
        )

    def render(self) -> bytes:
        """The text that /metrics answers with."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return self._kept(Gauge(f"tower_{name}", text, labels, registry=self.registry), labels)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return self._kept(Counter(f"tower_{name}", text, labels, registry=self.registry), labels)

    def _histogram(self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = _FAST) -> Histogram:
        return self._kept(Histogram(f"tower_{name}", text, labels, registry=self.registry, buckets=buckets), labels)

    def _kept(self, metric: K, labels: tuple[str, ...]) -> K:
        if M in labels:
            self._per_cluster.append(metric)
        return metric


class ServerMetrics(_Metrics):
    """What the tower server counts."""

    def __init__(self, *, version: str) -> None:
        super().__init__(version=version)
        self.clusters = self._gauge("clusters", "Clusters by state.", "state")
        for state in STATES:
            self.clusters.labels(state).set(0)
        self.cluster_ready = self._gauge("cluster_ready", "Whether a request would get through now (1).", M)
        self.cluster_not_ready = self._gauge(
            "cluster_not_ready", "1 for the reason a cluster is not ready.", M, "reason"
        )
        self.cluster_transitions = self._counter("cluster_transitions_total", "Changes of a cluster's state.", M, "to")
        self.cluster_last_transition = self._gauge(
            "cluster_last_transition_timestamp_seconds", "When the state last changed.", M
        )
        self.probes = self._counter("probes_total", "Probes of the member's /readyz through the tunnel.", M, "result")
        self.tunnels = self._gauge("tunnels", "Open tunnels.", M, "dialect")
        self.tunnels_expected = self._gauge("tunnels_expected", "Tunnels that the cluster should have.", M)
        self.tunnel_rtt = self._gauge("tunnel_rtt_seconds", "Last measured round trip of the best tunnel.", M)
        self.tunnel_closes = self._counter("tunnel_closes_total", "Tunnels closed, by cause.", M, "cause")
        self.resumes = self._counter(
            "tunnel_resumes_total", "Tunnels without a link, by what became of them.", M, "result"
        )
        self.handshakes = self._counter("handshakes_total", "Handshakes on the tunnel port, by result.", "result")
        self.enrolments = self._counter("enrolments_total", "Enrolments by result.", "result")
        self.streams = self._gauge("streams", "Open streams.", M, "service")
        self.stream_opens = self._counter("stream_opens_total", "Opens of streams, by result.", M, "result")
        self.stream_open_duration = self._histogram(
            "stream_open_duration_seconds", "From the caller's connection to the member's answer to the open."
        )
        self.stream_bytes = self._counter("stream_bytes_total", "Bytes carried for callers.", M, "direction")
        self.error_responses = self._counter(
            "error_responses_total", "Answers that the server itself gave to callers, by fault code.", M, "code"
        )
        self.callers_waiting = self._gauge("callers_waiting", "Callers held until a tunnel returns.", M)
        self.caller_hold_duration = self._histogram(
            "caller_hold_duration_seconds", "How long callers were held for a tunnel, by how it ended.", "result"
        )
        self.held = {result: self.caller_hold_duration.labels(result) for result in HOLD_RESULTS}
        self.caller_tls_failures = self._counter(
            "caller_tls_failures_total", "TLS handshakes with callers that failed at the server itself.", M
        )
        self.buffer_bytes = self._gauge("buffer_bytes", "Bytes buffered in all tunnels.")
        self.buffer_limit_bytes = self._gauge("buffer_limit_bytes", "The process' buffer budget.")
        self.throttled = self._counter("throttled_total", "Work refused because a limit was reached.", "limit")
        self.ports = self._gauge("ports", "Ports by kind and state.", "kind", "state")
        self.admin_requests = self._counter("admin_requests_total", "Answers of the admin API.", "code")
        self.leader = self._gauge("leader", "Whether this server runs the controller of its Kubernetes host now (1).")
        self.workqueue_depth = self._gauge("workqueue_depth", "Clusters that wait for the controller.")
        self.reconciles = self._counter(
            "reconciles_total", "Looks of the controller at a cluster, by result.", "result"
        )
        self._bound: dict[str, ClusterMetrics] = {}

    def cluster(self, name: str) -> ClusterMetrics:
        """The children of one cluster, made at the first call with all fixed label values at zero."""
        if name not in self._bound:
            self._bound[name] = ClusterMetrics(self, name)
        return self._bound[name]

    def forget(self, name: str) -> None:
        """Takes every series of a deleted cluster out of the output."""
        self._bound.pop(name, None)
        for metric in self._per_cluster:
            metric.remove_by_labels({M: name})


class ClusterMetrics:
    """Bound children of one cluster for the hot path; the label values that are known start at zero."""

    def __init__(self, metrics: ServerMetrics, name: str) -> None:
        self.name = name
        self._metrics = metrics
        self.ready = metrics.cluster_ready.labels(name)
        self.expected = metrics.tunnels_expected.labels(name)
        self.last_transition = metrics.cluster_last_transition.labels(name)
        self.rtt = metrics.tunnel_rtt.labels(name)
        self.waiting = metrics.callers_waiting.labels(name)
        self.held = metrics.held
        self.tls_failures = metrics.caller_tls_failures.labels(name)
        self.tunnels = metrics.tunnels.labels(name, "tower.v1")
        self.opens = {result: metrics.stream_opens.labels(name, result) for result in OPEN_RESULTS}
        self.to_member, self.from_member = (metrics.stream_bytes.labels(name, way) for way in DIRECTIONS)
        self._resumes = {result: metrics.resumes.labels(name, result) for result in RESUME_RESULTS}
        self.probe_ok = metrics.probes.labels(name, "ok")
        self.probe_failed = metrics.probes.labels(name, "failed")
        self._streams: dict[str, Gauge] = {}
        self._state = ""
        self._reason = ""

    def streams(self, service: str) -> Gauge:
        """The gauge of open streams of a declared service."""
        if service not in self._streams:
            self._streams[service] = self._metrics.streams.labels(self.name, service)
        return self._streams[service]

    def closed(self, cause: str) -> None:
        """Counts a closed tunnel; `cause` is the name of a protocol code, never free text."""
        self._metrics.tunnel_closes.labels(self.name, cause).inc()

    def resumed(self, result: str) -> None:
        """Counts what became of a tunnel without a link (one of RESUME_RESULTS)."""
        self._resumes[result].inc()

    def answered(self, code: str) -> None:
        """Counts an answer that the server itself gave to a caller (`TWR201`)."""
        self._metrics.error_responses.labels(self.name, code).inc()

    def state(self, state: str, *, ready: bool, at: float) -> None:
        """Notes the state of the cluster (one of STATES); counts a transition if it changed."""
        self.ready.set(1 if ready else 0)
        reason = "" if ready else state
        if reason != self._reason:  # not with the state alone: Degraded is both
            if self._reason:
                self._metrics.cluster_not_ready.remove(self.name, self._reason)
            if reason:
                self._metrics.cluster_not_ready.labels(self.name, reason).set(1)
            self._reason = reason
        if state == self._state:
            return
        if self._state:
            self._metrics.cluster_transitions.labels(self.name, state).inc()
        self.last_transition.set(at)
        self._state = state


class AgentMetrics(_Metrics):
    """What an agent counts."""

    def __init__(self, *, version: str) -> None:
        super().__init__(version=version)
        self.connected = self._gauge("agent_connected", "Whether a tunnel to a host is open (1).", "host")
        self.tunnels = self._gauge("agent_tunnels", "Open tunnels to a host.", "host")
        self.cuts = self._counter(
            "agent_link_cuts_total", "Links to a host that were lost while streams waited.", "host"
        )
        self.resumes = self._counter("agent_resumes_total", "Tunnels that went on over another link.", "host")
        self.dials = self._counter(
            "agent_dials_total",
            "Dials to a host: the hop that failed, or `none`, and the result.",
            "host",
            "hop",
            "result",
        )
        self.tunnel_rtt = self._gauge("agent_tunnel_rtt_seconds", "Last measured round trip to a host.", "host")
        self.streams = self._gauge("agent_streams", "Open streams by declared service.", "service")
        self.tally = RequestTally(buckets=_FAST)
        self.registry.register(self.tally)
        self.denied = self._counter(
            "agent_denied_total", "Requests that the agent refused itself, by reason.", "reason"
        )
        self.caller_tls_failures = self._counter(
            "agent_caller_tls_failures_total", "TLS handshakes with callers that failed."
        )
        self.apiserver_up = self._gauge("agent_apiserver_up", "Whether the last probe of /readyz said ok (1).")
        self.buffer_bytes = self._gauge("agent_buffer_bytes", "Bytes buffered in all tunnels.")


async def sample_loop_lag(histogram: Histogram, *, interval: float = LAG_INTERVAL) -> None:
    """Observes, until cancelled, by how much a timer of `interval` seconds fires late."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval
        await asyncio.sleep(interval)
        histogram.observe(max(0.0, loop.time() - due))
