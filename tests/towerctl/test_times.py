from __future__ import annotations

import datetime as dt

import pytest

from towerctl import times

NOON = dt.datetime(2026, 3, 1, 12, 0, 0, tzinfo=dt.UTC).timestamp()


def test_times_of_the_api_are_read_with_and_without_fractions() -> None:
    assert times.seconds("2026-03-01T12:00:00Z") == NOON
    assert times.seconds("2026-03-01T12:00:00.250Z") == NOON + 0.25


@pytest.mark.parametrize("nothing", [None, "", "yesterday", 5, {}])
def test_what_is_no_time_is_shown_as_a_dash(nothing: object) -> None:
    assert times.seconds(nothing) is None
    assert times.age(nothing) == times.until(nothing) == times.clock(nothing) == "-"


def test_ages_are_those_of_kubectl() -> None:
    assert times.age("2026-03-01T11:48:00Z", now=NOON) == "12m"
    assert times.age("2026-03-01T12:00:30Z", now=NOON) == "0s"


def test_an_expiry_that_has_passed_is_named() -> None:
    assert times.until("2026-03-02T09:00:00Z", now=NOON) == "21h"
    assert times.until("2026-03-01T12:00:00Z", now=NOON) == "expired"


def test_what_was_given_an_hour_a_moment_ago_has_an_hour() -> None:
    assert times.until("2026-03-01T13:00:00Z", now=NOON + 0.8) == "60m"
    assert times.until("2026-03-01T12:01:30Z", now=NOON) == "90s"
    assert times.until("2026-03-01T12:00:01Z", now=NOON + 0.9) == "1s", "what is not over has not 0s"


def test_a_moment_of_another_day_carries_its_date() -> None:
    assert times.clock("2020-03-01T02:14:07Z") == "2020-03-01 02:14:07Z"


def test_written_times_can_be_read_again() -> None:
    assert times.rfc3339(NOON) == "2026-03-01T12:00:00Z"
