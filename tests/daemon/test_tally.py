"""The tally of requests is what Prometheus' own counters and histograms would have said."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from daemon.tally import RequestTally

BUCKETS = (0.01, 0.1, 1.0)
NAME = "tower_agent_request_duration_seconds"


def samples(registry: CollectorRegistry, family: str) -> dict[tuple[str, ...], float]:
    text = generate_latest(registry).decode()
    (found,) = (each for each in text_string_to_metric_families(text) if each.name == family)
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for sample in found.samples
        if not sample.name.endswith("_created")
    }


def test_durations_fall_into_the_same_buckets_as_with_the_librarys_histogram() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = RequestTally(buckets=BUCKETS)
    ours.register(tally)
    histogram = Histogram(NAME, "x", ["verb"], buckets=BUCKETS, registry=theirs)
    for verb, seconds in (("get", 0.01), ("get", 0.010001), ("get", 5.0), ("list", 0.0), ("list", 1.0)):
        tally.count(verb, 200, 0, 0, seconds)
        histogram.labels(verb).observe(seconds)
    assert samples(ours, NAME) == samples(theirs, NAME)


def test_requests_and_bytes_add_up() -> None:
    registry = CollectorRegistry()
    tally = RequestTally(buckets=BUCKETS)
    registry.register(tally)
    tally.count("get", 200, 10, 1000, None)
    tally.count("get", 200, 10, 1000, None)
    tally.count("get", 404, 5, 50, None)
    assert samples(registry, "tower_agent_requests") == {
        ("tower_agent_requests_total", "200", "get"): 2,
        ("tower_agent_requests_total", "404", "get"): 1,
    }
    assert samples(registry, "tower_agent_stream_bytes") == {
        ("tower_agent_stream_bytes_total", "to_member"): 25,
        ("tower_agent_stream_bytes_total", "from_member"): 2050,
    }
