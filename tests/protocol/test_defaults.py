"""Defaults that only make sense together."""

from __future__ import annotations

from protocol import defaults
from protocol.flow import Limits


def test_what_must_fit_fits() -> None:
    Limits()
    assert defaults.RESERVED_CREDIT <= defaults.INITIAL_CREDIT <= defaults.MAX_CREDIT <= defaults.TUNNEL_BUDGET
    assert defaults.TUNNEL_BUDGET <= defaults.PROCESS_BUDGET
    assert defaults.SEND_LOW < defaults.SEND_HIGH
    assert defaults.PING_INTERVAL * 2 < defaults.DEAD_AFTER, "one lost ping must not look like a dead peer"
    assert defaults.BACKOFF_MIN < defaults.BACKOFF_MAX
    assert defaults.DIAL_DEADLINE < defaults.OPEN_DEADLINE, "the member's dial ends before the open that waits for it"


def test_a_cut_is_noticed_before_kubectl_gives_up() -> None:
    assert defaults.DEAD_AFTER + defaults.RESUME_WINDOW < 60.0
