"""Make a failing run small: leave items out for as long as it still fails by the same rule."""

from __future__ import annotations

from tests.simulation.plan import Plan
from tests.simulation.run import play
from tests.simulation.world import Violation

MOST_RUNS = 300


def fails(plan: Plan, keep: list[int]) -> Violation | None:
    """How the plan fails with these items only."""
    try:
        play(plan.keep(keep))
    except Violation as violation:
        return violation
    return None


def shrink(plan: Plan, violation: Violation) -> list[int]:
    """The numbers of few items with which the plan still violates the same rule."""
    keep = list(range(len(plan.items)))
    size, runs = max(1, len(keep) // 2), 0
    while size:
        at, shorter = 0, False
        while at < len(keep) and runs < MOST_RUNS:
            rest = keep[:at] + keep[at + size :]
            runs += 1
            found = fails(plan, rest)
            if found is not None and found.rule == violation.rule:
                keep, shorter = rest, True
            else:
                at += size
        if size == 1 and not shorter:
            break
        size = max(1, size // 2) if size > 1 or shorter else 0
        if runs >= MOST_RUNS:
            break
    return keep
