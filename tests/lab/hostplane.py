"""A real apiserver as the host, once a session: tests that share it keep to namespaces or names of their own.

A plugin for pytest. Nothing of Tower is installed in it; `crds(plane)` does that, and waits until the kinds are served.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import assets
from tests.lab.controlplane import ControlPlane

ROOT = Path(__file__).resolve().parents[2]
CRDS = ROOT / "deploy" / "crds"
NEEDED = ("kube-apiserver", "etcd", "kubectl")


def pytest_collection_finish(session: pytest.Session) -> None:
    """The first build takes minutes: before the first test, where no test's timeout runs and progress can be seen."""
    needed = any("host_plane" in getattr(item, "fixturenames", ()) for item in session.items)
    if needed and not session.config.option.collectonly:
        assets.ensure(NEEDED)


@pytest.fixture(scope="session")
def host_plane() -> Iterator[ControlPlane]:
    """The host's control plane: etcd and an apiserver."""
    with tempfile.TemporaryDirectory(prefix="tower-host-") as folder, ControlPlane(Path(folder), pods=False) as plane:
        yield plane


def crds(plane: ControlPlane, *names: str) -> None:
    """Installs Tower's own CRDs (all of them without a name), as `kubectl create -f` would; again is fine."""
    for file in [CRDS / f"{name}.yaml" for name in names] or sorted(CRDS.glob("*.yaml")):
        plane.kubectl("apply", "--server-side", "-f", str(file))
    plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=20s")
