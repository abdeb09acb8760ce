"""Keys are merged, never worked on twice at once, never lost; failures back off key by key."""

from __future__ import annotations

from hypothesis import given, strategies

from tower_server.controller.limits import RETRY_MAX
from tower_server.controller.workqueue import WorkQueue


def queue() -> WorkQueue[str]:
    return WorkQueue(random=lambda: 0.5)


def test_a_key_that_waits_is_there_once():
    waiting = queue()
    waiting.add("a")
    waiting.add("a")
    assert (waiting.take(), waiting.take()) == ("a", None)


def test_what_happens_while_a_key_is_worked_on_brings_it_back_afterwards_and_not_before():
    waiting = queue()
    waiting.add("a")
    waiting.take()
    waiting.add("a")
    assert waiting.take() is None
    waiting.done("a")
    assert waiting.take() == "a"


def test_a_failed_key_comes_back_later_each_time_and_at_last_every_few_minutes():
    waiting = queue()
    delays = []
    for _ in range(20):
        waiting.add("a")
        waiting.take()
        delays.append(waiting.failed("a", 0.0))
    assert delays == sorted(delays)
    assert delays[0] < 1
    assert RETRY_MAX / 2 <= delays[-1] <= RETRY_MAX
    assert waiting.failures("a") == 20


def test_success_forgets_the_failures():
    waiting = queue()
    waiting.add("a")
    waiting.take()
    due = waiting.failed("a", 10.0) + 10.0
    assert waiting.tick(due - 0.01) == due
    assert waiting.tick(due) is None
    assert waiting.take() == "a"
    waiting.done("a")
    assert waiting.failures("a") == 0


def test_another_reason_to_look_overtakes_the_back_off():
    waiting = queue()
    waiting.add("a")
    waiting.take()
    waiting.failed("a", 0.0)
    waiting.add("a")
    assert waiting.take() == "a"
    waiting.done("a")
    assert waiting.tick(1e9) is None
    assert waiting.take() is None


def test_the_earliest_of_several_dates_counts():
    waiting = queue()
    waiting.add_at("a", 50.0)
    waiting.add_at("a", 20.0)
    waiting.add_at("a", 90.0)
    assert waiting.tick(0.0) == 20.0
    waiting.tick(20.0)
    assert waiting.take() == "a"
    waiting.done("a", again_at=60.0)
    assert waiting.tick(59.0) == 60.0


STEPS = strategies.lists(
    strategies.tuples(
        strategies.sampled_from(["add", "take", "done", "failed", "tick"]), strategies.sampled_from("abc")
    )
)


@given(STEPS)
def test_nothing_that_was_asked_for_is_ever_lost_or_done_twice_at_once(steps):
    waiting, owed, working, now = queue(), set(), set(), 0.0
    for step, key in steps:
        now += 1.0
        if step == "add":
            waiting.add(key)
            owed.add(key)
        elif step == "take":
            taken = waiting.take()
            assert taken is None or taken not in working
            if taken is not None:
                working.add(taken)
                owed.discard(taken)
        elif step in ("done", "failed") and key in working:
            working.discard(key)
            if step == "failed":
                waiting.failed(key, now)
                owed.add(key)
            else:
                waiting.done(key)
        elif step == "tick":
            waiting.tick(now)
    for key in working:
        waiting.done(key)
    waiting.tick(1e9)
    left = set()
    while (taken := waiting.take()) is not None:
        left.add(taken)
    assert owed <= left
