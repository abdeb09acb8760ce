"""One apiserver for this room's tests, with both CRDs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import assets
from tests.lab.controlplane import ControlPlane

CRDS = Path(__file__).parents[3] / "deploy" / "crds"


def pytest_collection_finish(session: pytest.Session) -> None:
    """The first build takes minutes: before the first test, where no test's timeout runs and progress can be seen."""
    needed = any("plane" in getattr(item, "fixturenames", ()) for item in session.items)
    if needed and not session.config.option.collectonly:
        assets.ensure(["kube-apiserver", "etcd", "kubectl"])


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    with tempfile.TemporaryDirectory(prefix="tower-host-") as folder, ControlPlane(Path(folder), pods=False) as made:
        made.kubectl("apply", "--server-side", "-f", str(CRDS))
        made.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        yield made
