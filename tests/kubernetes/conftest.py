"""The member (a real control plane) and a tower that reaches it, once a session; a caller's two views of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.kubernetes.views import Pair, View
from tests.lab import assets
from tests.lab.controlplane import ControlPlane
from tests.lab.world import TowerWorld
from tests.loopback.relayed import net as net
from tests.loopback.relayed import place as place

MEMBER = "edge-1"


def pytest_collection_finish(session: pytest.Session) -> None:
    """The first build takes minutes: before the first test, where no test's timeout runs and progress can be seen."""
    needed = any("member" in getattr(item, "fixturenames", ()) for item in session.items)
    if needed and not session.config.option.collectonly:
        assets.ensure()


@pytest.fixture(scope="session")
def member() -> Iterator[ControlPlane]:
    with tempfile.TemporaryDirectory(prefix="tower-member-") as folder, ControlPlane(Path(folder)) as plane:
        furnish(plane)
        yield plane


def furnish(plane: ControlPlane) -> None:
    """What reading tests read, and a ServiceAccount whose token is a caller."""
    plane.kubectl("create", "namespace", "shared")
    for name in ("one", "two"):
        plane.kubectl("create", "configmap", name, "-n", "shared", f"--from-literal=name={name}")
    plane.kubectl("label", "configmaps", "-n", "shared", "--all", "kind=shared")
    plane.create_pod("shared", namespace="shared")
    plane.write_log("shared", "first line", "second line", namespace="shared")
    plane.kubectl("create", "serviceaccount", "caller", "-n", "shared")
    plane.kubectl(
        "create", "clusterrolebinding", "caller", "--clusterrole=cluster-admin", "--serviceaccount=shared:caller"
    )


def view(plane: ControlPlane, name: str, kubeconfig: Path) -> View:
    home = plane.folder / f"home-{name}-{kubeconfig.stem}"
    home.mkdir(exist_ok=True)
    return View(name, plane.programs["kubectl"], kubeconfig, home)


@pytest.fixture(scope="session")
def token(member: ControlPlane) -> str:
    """A token of a ServiceAccount of the member, who is its administrator."""
    return member.kubectl("create", "token", "caller", "-n", "shared", "--duration=2h").text


@pytest.fixture(scope="session")
def world(member: ControlPlane) -> Iterator[TowerWorld]:
    """A tower server, and an agent of the member joined to it."""
    with tempfile.TemporaryDirectory(prefix="tower-") as folder, TowerWorld(Path(folder)) as tower:
        tower.join(MEMBER, member)
        yield tower


@pytest.fixture(scope="session", params=["certificate", "bearer"])
def pair(request: pytest.FixtureRequest, member: ControlPlane, world: TowerWorld, token: str) -> Pair:
    """The same user both ways: a certificate of the host's against one of the member's, or one and the same token."""
    through = world.kubeconfig(MEMBER)
    if request.param == "certificate":
        straight = member.kubeconfig(f"tower:{world.host}:admin", groups=[f"tower:{world.host}:cluster-admins"])
    else:
        straight = member.kubeconfig("bearer", token=token)
        through = with_token(through, token)
    return Pair(request.param, view(member, "direct", straight), view(member, "tunnel", through))


def with_token(kubeconfig: Path, token: str) -> Path:
    """The same way to the member, shown a bearer token instead of a certificate."""
    config = yaml.safe_load(kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    path = kubeconfig.with_suffix(".bearer")
    path.touch(0o600)
    path.write_text(yaml.safe_dump(config))
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of a module waits for a control plane and programs to start, on a busy machine for minutes."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(300))
