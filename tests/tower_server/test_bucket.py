"""The token buckets."""

import itertools

from tower_server.bucket import MAX_NETWORKS, MAX_TURN, Bucket, SharedBucket


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


def test_a_network_that_storms_keeps_nobody_out_and_gets_what_others_leave():
    shared = SharedBucket(rate=10.0, burst=20, now=0.0)
    assert sum(shared.take(0.0, "storm") is None for _ in range(100)) == 10
    assert sum(shared.take(0.0, "honest") is None for _ in range(5)) == 5
    taken = sum(shared.take(step / 100, "storm") is None for step in range(1, 1001))
    assert 80 <= taken <= 110  # of 100 in these ten seconds, that nobody else has asked for
    assert shared.take(10.0, "honest") is None


def test_networks_are_forgotten_but_not_their_sum():
    shared = SharedBucket(rate=1.0, burst=4, now=0.0)
    assert sum(shared.take(0.0, f"network-{n}") is None for n in range(2 * MAX_NETWORKS)) == 4
    assert len(shared._shares) == MAX_NETWORKS


def test_each_who_is_turned_away_has_a_turn_of_its_own_and_finds_room_then():
    shared = SharedBucket(rate=10.0, burst=20, now=0.0)
    turns = [wait for wait in (shared.take(0.0, "storm") for _ in range(110)) if wait is not None]
    assert len(turns) == 100
    assert turns[0] == 0.1
    assert all(abs(later - earlier - 0.1) < 1e-9 for earlier, later in itertools.pairwise(turns))
    assert sum(shared.take(wait, "storm") is None for wait in turns) >= 99


def test_no_turn_is_further_away_than_a_peer_may_be_sent_and_other_networks_have_their_own():
    shared = SharedBucket(rate=1.0, burst=2, now=0.0)
    waits = [shared.take(0.0, "storm") or 0.0 for _ in range(1000)]
    assert max(waits) == MAX_TURN
    assert shared.take(0.0, "honest") is None
    assert (shared.take(0.0, "honest") or 0.0) <= 2.0
