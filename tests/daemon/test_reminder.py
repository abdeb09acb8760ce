"""What is logged of a failure that goes on."""

from __future__ import annotations

import math

from daemon.reminder import REMIND_EVERY, Reminder


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_same_failure_is_said_once_a_minute() -> None:
    clock = Clock()
    reminder = Reminder(clock=clock)
    assert reminder.due("refused")
    clock.now += REMIND_EVERY - 0.1
    assert not reminder.due("refused")
    clock.now += 0.1
    assert reminder.due("refused")
    assert not reminder.due("refused")  # the minute has begun anew


def test_another_failure_is_said_at_once() -> None:
    reminder = Reminder(clock=Clock())
    assert [reminder.due(text) for text in ("refused", "timed out", "timed out", "refused")] == [
        True,
        True,
        False,
        True,
    ]


def test_a_failure_after_a_success_is_said_at_once() -> None:
    reminder = Reminder(clock=Clock())
    assert reminder.due("refused")
    reminder.reset()
    assert reminder.due("refused")


def test_without_end_nothing_is_said_twice_in_a_row() -> None:
    clock = Clock()
    reminder = Reminder(every=math.inf, clock=clock)
    assert reminder.due("unreadable")
    clock.now += 1e9
    assert not reminder.due("unreadable")


def test_even_an_error_without_words_is_said() -> None:
    assert Reminder(clock=Clock()).due("")
