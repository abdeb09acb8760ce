"""What the demo says of a machine that was too busy for it."""

from __future__ import annotations

from tests.lab.demo import too_busy


def test_only_a_busy_machine_is_blamed_and_the_next_step_named() -> None:
    assert too_busy(1.5, 2) == ""
    assert "load 31 on 2 processors" in too_busy(31.2, 2)
    assert too_busy(31.2, 2).endswith("run it again")
