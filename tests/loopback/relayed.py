"""Fixtures of the modules whose agents dial through a relay that can fail: a conftest takes them over by name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.processes import free_ports
from tests.loopback.relay import Network, network


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A short path: a Unix socket lies below it."""
    with tempfile.TemporaryDirectory(prefix="twr-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def net(place: Path) -> Iterator[tuple[Network, int]]:
    """The relay, and the port to which it leads: that of the module's tower server."""
    (port,) = free_ports(1)
    with network(place, port) as made:
        yield made, port
