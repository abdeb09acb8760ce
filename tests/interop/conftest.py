"""What the ring of the Go peers shares: their programs, a member that answers over real TLS, callers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.peers import VINTAGES, Vintage
from tests.lab import assets
from tests.loopback.member import BackendMember

PROGRAMS = [f"go-{end}-{vintage}" for end in ("agent", "proxy") for vintage in VINTAGES]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Built before the first test, where no test's timeout runs."""
    here = Path(__file__).parent
    ours = [item for item in session.items if here in item.path.parents]
    if ours and not session.config.option.collectonly:
        assets.ensure(PROGRAMS)
        if any("plane" in getattr(item, "fixturenames", ()) for item in ours):
            assets.ensure()


@pytest.fixture(scope="session")
def member() -> Iterator[BackendMember]:
    with tempfile.TemporaryDirectory(prefix="twr-interop-") as folder, BackendMember(Path(folder)) as backend:
        yield backend


@pytest.fixture(params=VINTAGES)
def vintage(request: pytest.FixtureRequest) -> Vintage:
    """Which of the two deployed vintages the Go peer is."""
    found: Vintage = request.param
    return found
