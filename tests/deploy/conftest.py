"""The chart's renderer is built before the first test, where no test's timeout runs."""

from __future__ import annotations

import pytest

from tests.lab import assets


def pytest_collection_finish(session: pytest.Session) -> None:
    wanted = any(item.path.name == "test_chart.py" for item in session.items)
    if wanted and not session.config.option.collectonly:
        assets.ensure(["chart"])
