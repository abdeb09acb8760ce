"""Counts of the hot path as plain numbers, turned into samples when somebody asks.

A request counts half a dozen things; the metrics library takes a lock for each. Here a request adds to a few integers,
on the loop's thread, and `collect` (on the same thread) makes families of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class RequestTally(Collector):
    """Requests by verb and code, the time to their answers by verb, and the bytes carried each way."""

    def __init__(self, *, buckets: tuple[float, ...]) -> None:
        self.to_member = 0
        self.from_member = 0
        self._bounds = buckets
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}

    def count(self, verb: str, code: int, to_member: int, from_member: int, seconds: float | None) -> None:
        """One request with its bytes, and how long it waited for its answer's head; None where that says nothing."""
        self._requests[verb, code] += 1
        self.to_member += to_member
        self.from_member += from_member
        if seconds is None:
            return
        buckets = self._buckets.get(verb)
        if buckets is None:
            buckets = self._buckets[verb] = [0] * (len(self._bounds) + 1)
            self._seconds[verb] = 0.0
        buckets[bisect_left(self._bounds, seconds)] += 1
        self._seconds[verb] += seconds

    def collect(self) -> Iterable[Metric]:
        """prometheus_client's Collector."""
        requests = CounterMetricFamily(
            "tower_agent_requests", "Requests of callers by verb and status.", labels=["verb", "code"]
        )
        for (verb, code), number in sorted(self._requests.items()):
            requests.add_metric([verb, str(code)], number)
        yield requests
        durations = HistogramMetricFamily(
            "tower_agent_request_duration_seconds",
            "From the head of a request to the head of its answer; watches and upgrades are not in it.",
            labels=["verb"],
        )
        for verb, counts in sorted(self._buckets.items()):
            durations.add_metric([verb], self._cumulated(counts), self._seconds[verb])
        yield durations
        carried = CounterMetricFamily("tower_agent_stream_bytes", "Bytes relayed for callers.", labels=["direction"])
        carried.add_metric(["to_member"], self.to_member)
        carried.add_metric(["from_member"], self.from_member)
        yield carried

    def _cumulated(self, counts: list[int]) -> list[tuple[str, float]]:
        below, result = 0, []
        for bound, number in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
            below += number
            result.append((bound, float(below)))
        return result
