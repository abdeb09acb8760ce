"""How many cases a property test tries: `@examples(600)` means so many in `make test`, a quarter in `make test-fast`.

`--hypothesis-profile=fast` chooses the quarter. No profile has a deadline for one example or for drawing it: on a busy
machine these would tell of the machine and not of the code.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings

WHOLE = 100
settings.register_profile("whole", max_examples=WHOLE, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fast", settings.get_profile("whole"), max_examples=WHOLE // 4)
settings.load_profile("whole")


def examples(number: int, **more: Any) -> settings:
    """Settings of a test, for a decorator or `TestCase.settings`."""
    return settings(max_examples=max(1, number * settings().max_examples // WHOLE), **more)
