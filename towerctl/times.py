"""Times of the admin API (RFC 3339 in UTC) as people read them."""

from __future__ import annotations

import datetime as dt
import math
import time
from typing import Any

from daemon.units import format_age


def seconds(value: Any) -> float | None:
    """Seconds since the epoch; None where there is no time."""
    if not isinstance(value, str):
        return None
    try:
        return dt.datetime.fromisoformat(value).timestamp()
    except ValueError:
        return None


def age(value: Any, *, now: float | None = None) -> str:
    """How long ago: `12m`."""
    at = seconds(value)
    return "-" if at is None else format_age((time.time() if now is None else now) - at)


def until(value: Any, *, now: float | None = None) -> str:
    """How long it is until then: `21h`, or `expired`. Upwards, from two minutes up to whole ones: what was just given
    an hour has an hour, and what is not over has a second."""
    at = seconds(value)
    if at is None:
        return "-"
    left = at - (time.time() if now is None else now)
    unit = 60 if left > 120 else 1
    left = math.ceil(left / unit) * unit
    return format_age(left) if left > 0 else "expired"


def clock(value: Any) -> str:
    """The moment itself: `02:14:07Z` of today, with the date when it was another day."""
    at = seconds(value)
    if at is None:
        return "-"
    moment = dt.datetime.fromtimestamp(at, dt.UTC)
    today = moment.date() == dt.datetime.now(dt.UTC).date()
    return moment.strftime("%H:%M:%SZ" if today else "%Y-%m-%d %H:%M:%SZ")


def rfc3339(at: float) -> str:
    """Seconds since the epoch as the API writes them."""
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
