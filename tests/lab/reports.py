"""A test's timeout does not strike while its failure is written down: the exception would come up inside of pytest, and
end the run of all tests. What is left of the time, and a little more, is there for the rest of the test.
"""

from __future__ import annotations

import signal
from collections.abc import Generator

import pytest

TO_TEAR_DOWN = 60.0


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        return (yield)
    finally:
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left, TO_TEAR_DOWN))
