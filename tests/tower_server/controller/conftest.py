"""One apiserver for this room's tests, with both CRDs."""

from __future__ import annotations

import pytest

from tests.lab.controlplane import ControlPlane
from tests.lab.hostplane import crds


@pytest.fixture(scope="session")
def plane(host_plane: ControlPlane) -> ControlPlane:
    crds(host_plane)
    return host_plane
