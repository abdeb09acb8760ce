"""REQUIRE_ALL=1 turns skips into failures, and leaves expected failures and everything else alone."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # many processes

ROOT = Path(__file__).resolve().parents[2]
SUITE = """
import pytest
def test_skips(): pytest.skip("no such thing here")
@pytest.mark.skipif(True, reason="by mark")
def test_mark(): pass
@pytest.mark.xfail(strict=True)
def test_expected(): assert False
def test_runs(): pass
"""


@pytest.mark.parametrize(
    ("value", "outcomes"),
    [("", {"passed": 1, "skipped": 3, "xfailed": 1}), ("1", {"passed": 1, "failed": 1, "xfailed": 1, "errors": 2})],
)
def test_a_skip_is_a_failure_only_when_all_is_required(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, value: str, outcomes: dict[str, int]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("REQUIRE_ALL", value)
    pytester.makepyfile(
        test_one=SUITE, test_module="import pytest; pytest.skip('whole module', allow_module_level=True)"
    )
    arguments = ["-p", "tests.lab.required", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    result = pytester.runpytest_subprocess(*arguments)
    result.assert_outcomes(**outcomes)
    if value:
        result.stdout.fnmatch_lines(["*REQUIRE_ALL=1 and this was not run:*no such thing here*"])
