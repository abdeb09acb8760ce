"""This room's tests run on the loop that the server runs on."""

from __future__ import annotations

import pytest
import structlog

from tests.lab.loops import pytest_asyncio_loop_factories as pytest_asyncio_loop_factories


@pytest.fixture(autouse=True)
def _log_of_no_other_test() -> None:
    """A level that another room's test has set for its process would keep lines from those who look at them here."""
    structlog.reset_defaults()
