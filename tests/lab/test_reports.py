from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SLOW_TO_TELL = """
import time
import pytest

class Slow(Exception):
    def __str__(self):
        time.sleep(1.5)
        return "told in full"

@pytest.mark.timeout(1)
def test_fails():
    raise Slow

def test_next():
    pass
"""


def test_a_failure_that_is_slow_to_tell_is_told_and_the_run_goes_on(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile(SLOW_TO_TELL)
    result = pytester.runpytest_subprocess("-p", "tests.lab.reports", "-p", "no:cacheprovider")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*told in full*"])
