"""Several workers start a shared program once, and lose no test."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # many processes

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import os
from pathlib import Path
import pytest

@pytest.fixture(scope="session")
def tower(): Path("started", f"tower-{os.getpid()}").touch()
@pytest.fixture(scope="package")
def world(): Path("started", f"world-{os.getpid()}").touch()
@pytest.fixture
def through(tower): ...

@pytest.mark.parametrize("n", range(200))
def test_alone(n): ...
@pytest.mark.parametrize("n", range(20))
def test_through_the_tower(n, through): ...
@pytest.mark.parametrize("n", range(20))
def test_in_the_world(n, world): ...
"""


def test_each_program_is_started_by_one_worker_and_every_test_runs(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    started = pytester.mkdir("started")
    pytester.makepyfile(TESTS)
    arguments = ("-p", "tests.lab.spread", "-p", "no:cacheprovider", "-n", "4", "--dist", "worksteal")
    pytester.runpytest_subprocess(*arguments).assert_outcomes(passed=240)
    by = [file.name.partition("-") for file in started.iterdir()]
    assert sorted(name for name, _, _ in by) == ["tower", "world"]
    assert len({process for _, _, process in by}) == 2
