"""One tower for the ring: a server, two clusters with an agent each, one backend; tests that damage one make their own.

`edge-1` is what tests attack; its agent works by a client certificate, the credential that must never leak into
somebody else's request. `edge-2` is the bystander; its agent works by a token. Both worked before every test, with a
stream open in each, and `bystanders` holds that they still do after it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.world import TowerWorld
from tests.loopback.callers import Caller, tunnels, watching
from tests.loopback.member import BackendMember
from tests.loopback.relayed import net as net
from tests.loopback.relayed import place as place

EDGE, OTHER = "edge-1", "edge-2"
PEOPLE = ("alice", "bob", "carol", "dave")
# Two seconds in place of ten, so that whoever says nothing is not waited for that long.
DEADLINES = {"HANDSHAKE_DEADLINE": 2.0, "HEAD_DEADLINE": 2.0}


@pytest.fixture(scope="package")
def member() -> Iterator[BackendMember]:
    with tempfile.TemporaryDirectory(prefix="twr-member-") as folder, BackendMember(Path(folder)) as backend:
        yield backend


def policy_of(tower: TowerWorld) -> dict[str, list[str]]:
    """What the owner of `edge-1` allows: the host's own names, and a few people whom tests revoke."""
    own = [f"tower:{tower.host}:admin", f"tower:{tower.host}:probe"]
    return {"users": [*own, *PEOPLE], "groups": [f"tower:{tower.host}:cluster-admins"]}


@pytest.fixture(scope="package")
def world(member: BackendMember) -> Iterator[TowerWorld]:
    with tempfile.TemporaryDirectory(prefix="twr-") as folder, TowerWorld(Path(folder), constants=DEADLINES) as tower:
        tower.join(EDGE, member, credential=member.by_certificate, policy=policy_of(tower))
        tower.join(OTHER, member, credential=member.by_token)
        yield tower


@pytest.fixture(scope="package")
def admin(world: TowerWorld) -> Caller:
    """Whoever the host's admin is: a caller with a certificate."""
    return Caller(world.kubeconfig(EDGE))


@pytest.fixture(scope="package")
def neighbour(world: TowerWorld) -> Caller:
    return Caller(world.kubeconfig(OTHER))


@pytest.fixture(scope="module")
def streams(admin: Caller, neighbour: Caller) -> Iterator[list[Callable[[], None]]]:
    """Two streams that run through a module, one in the attacked tunnel and one in the other."""
    with watching(admin) as near, watching(neighbour) as far:
        yield [near, far]


@pytest.fixture
def bystanders(world: TowerWorld, streams: list[Callable[[], None]]) -> Iterator[None]:
    """Nothing of the two streams is lost during the test, and the tunnels after it are those of before."""
    before = [tunnels(world, name) for name in (EDGE, OTHER)]
    yield
    for goes_on in streams:
        goes_on()
    assert [tunnels(world, name) for name in (EDGE, OTHER)] == before


@pytest.fixture
def own_world() -> Iterator[Callable[..., TowerWorld]]:
    """Makes towers that a test may damage; all are ended with it."""
    made: list[TowerWorld] = []
    with tempfile.TemporaryDirectory(prefix="twr-") as folder:

        def make(**settings: object) -> TowerWorld:
            tower = TowerWorld(Path(folder) / f"w{len(made)}", **settings)  # type: ignore[arg-type]
            made.append(tower)
            tower.start()
            return tower

        try:
            yield make
        finally:
            for tower in made:
                tower.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of a module waits for its programs to start, on a busy machine for most of a minute."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(180))
