"""What the gateway reports becomes figures with bounded labels."""

from __future__ import annotations

import pytest

from daemon.metrics import AgentMetrics
from tests.tower_agent.test_auditlog import record
from tower_agent.observer import RequestObserver


@pytest.mark.asyncio
async def test_requests_are_counted_and_only_short_ones_timed() -> None:
    metrics = AgentMetrics(version="test")
    suspected: list[str] = []
    observer = RequestObserver("east", metrics, unreachable=lambda: suspected.append("east"))
    observer.request(record())
    observer.request(record(verb="watch", answered_after=3600.0))
    observer.request(record(code=502, fault="TWR301", answered_after=0.0))
    observer.tls_failed("unknown_issuer", "no", "203.0.113.9:5", "c1")
    text = metrics.render().decode()
    assert 'tower_agent_requests_total{code="200",verb="get"} 1.0' in text
    assert 'tower_agent_requests_total{code="200",verb="watch"} 1.0' in text
    assert 'tower_agent_request_duration_seconds_count{verb="get"} 1.0' in text
    assert 'tower_agent_request_duration_seconds_count{verb="watch"}' not in text
    assert 'tower_agent_denied_total{reason="TWR301"} 1.0' in text
    assert "tower_agent_caller_tls_failures_total 1.0" in text
    assert 'tower_agent_stream_bytes_total{direction="to_member"} 30.0' in text
    assert 'tower_agent_stream_bytes_total{direction="from_member"} 60.0' in text
    assert "203.0.113.9" not in text
    assert "jane" not in text
    assert suspected == ["east"], "by the request that found no apiserver, and by no other"
    assert observer.figures() == {"count": 3, "failed": 1, "seconds": 0.01}
