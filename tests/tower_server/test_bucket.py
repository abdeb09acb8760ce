"""The token bucket."""

from tower_server.bucket import Bucket


def test_a_burst_then_the_rate_with_the_time_to_come_back():
    bucket = Bucket(rate=2.0, burst=3, now=100.0)
    assert [bucket.take(100.0) for _ in range(3)] == [None, None, None]
    assert bucket.take(100.0) == 0.5
    assert bucket.take(100.25) == 0.25
    assert bucket.take(100.5) is None


def test_a_long_rest_fills_it_to_the_burst_and_no_further():
    bucket = Bucket(rate=10.0, burst=2, now=0.0)
    for _ in range(2):
        bucket.take(0.0)
    assert [bucket.take(1000.0) is None for _ in range(3)] == [True, True, False]
