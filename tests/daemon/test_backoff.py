from __future__ import annotations

from daemon.backoff import MAX_RETRY_AFTER, Backoff


def test_the_ceiling_doubles_up_to_the_maximum() -> None:
    backoff = Backoff(random=lambda: 0.999999)
    delays = [backoff.next() for _ in range(10)]
    assert [round(delay, 1) for delay in delays] == [0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0]


def test_the_whole_delay_is_random_above_the_floor() -> None:
    backoff = Backoff(random=lambda: 0.0)
    assert [backoff.next() for _ in range(5)] == [0.2] * 5


def test_success_resets() -> None:
    backoff = Backoff(random=lambda: 0.5)
    first = [backoff.next() for _ in range(4)]
    backoff.reset()
    assert backoff.failures == 0
    assert [backoff.next() for _ in range(4)] == first


def test_a_retry_after_is_never_undercut_and_keeps_jitter() -> None:
    low, high = Backoff(random=lambda: 0.0), Backoff(random=lambda: 0.9)
    assert low.next(retry_after=7.0) >= 7.0
    assert high.next(retry_after=7.0) > low.next(retry_after=7.0)
    high.failures = 20
    assert 9.0 < high.next(retry_after=7.0) <= 10.5, "after many failures no longer than half of it more"


def test_a_peer_cannot_send_us_away_for_good() -> None:
    assert Backoff(random=lambda: 0.0).next(retry_after=1e12) <= MAX_RETRY_AFTER + 30
    assert Backoff(random=lambda: 0.0).next(retry_after=-5) == 0.2


def test_a_hundred_thousand_failures_do_not_overflow() -> None:
    backoff = Backoff(random=lambda: 0.5)
    backoff.failures = 100_000
    assert backoff.next() < 30
