"""kubectl on a member that cannot answer ends within three seconds and says why; one that returns is served again."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.conftest import MEMBER, view
from tests.kubernetes.views import View
from tests.lab.controlplane import ControlPlane, Done
from tests.lab.processes import wait_until
from tests.lab.world import TowerWorld

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def tower(member: ControlPlane) -> Iterator[tuple[TowerWorld, View]]:
    with tempfile.TemporaryDirectory(prefix="tower-") as folder, TowerWorld(Path(folder), host="agentless") as made:
        made.join(MEMBER, member)
        yield made, view(member, "agentless", made.kubeconfig(MEMBER))


@pytest.fixture
def agentless(tower: tuple[TowerWorld, View]) -> tuple[TowerWorld, View]:
    """A tower whose agent is to end; it runs when the test begins."""
    made, _ = tower
    if made.members[MEMBER].agent.returncode is not None:
        made.restart_agent(MEMBER)
    made.until_state(MEMBER, "Connected")
    return tower


@pytest.fixture
def fragile() -> Iterator[tuple[ControlPlane, TowerWorld, View]]:
    """A member and a tower of one test, to be broken."""
    with (
        tempfile.TemporaryDirectory(prefix="tower-") as folder,
        ControlPlane(Path(folder, "m"), pods=False) as plane,
        TowerWorld(Path(folder, "t"), host="fragile") as tower,
    ):
        tower.join(MEMBER, plane)
        yield plane, tower, view(plane, "tunnel", tower.kubeconfig(MEMBER))


def timed(caller: View) -> Done:
    """Three seconds and what kubectl takes for itself here and now, which is most of one on a busy machine."""
    started = time.monotonic()
    done = caller.kubectl("get", "namespaces")
    took = time.monotonic() - started
    started = time.monotonic()
    assert caller.kubectl("options").code == 0
    assert took < 3.0 + (time.monotonic() - started)
    return done


def test_a_stopped_agent_is_told_and_a_restarted_one_serves(agentless: tuple[TowerWorld, View]) -> None:
    tower, caller = agentless
    assert timed(caller).code == 0
    member = tower.members[MEMBER]
    assert member.agent.stop() == 0
    for _ in range(2):  # while a return is likely, and again
        done = timed(caller)
        assert done.code == 1
        assert b"TWR201" in done.stderr
    assert tower.cluster(MEMBER)["state"] == "TunnelDown"
    tower.restart_agent(MEMBER)
    tower.until_state(MEMBER, "Connected")
    assert timed(caller).code == 0


def test_an_apiserver_that_is_gone_is_named(fragile: tuple[ControlPlane, TowerWorld, View]) -> None:
    plane, tower, caller = fragile
    apiserver = next(child for child in plane.children if child.name == "kube-apiserver")
    apiserver.send(signal.SIGKILL)
    apiserver.wait(30)
    done = timed(caller)
    assert done.code == 1
    assert b"TWR301" in done.stderr
    tower.until_state(MEMBER, "ApiserverDown")


def test_an_agent_that_falls_silent_is_told_of_before_its_link_counts_as_dead(
    agentless: tuple[TowerWorld, View],
) -> None:
    """As where its machine loses power."""
    tower, caller = agentless
    agent = tower.members[MEMBER].agent
    agent.send(signal.SIGSTOP)
    try:
        for _ in range(2):
            done = timed(caller)
            assert done.code == 1
            assert b"TWR222" in done.stderr
    finally:
        agent.send(signal.SIGCONT)
    wait_until(lambda: caller.kubectl("get", "namespaces").code == 0, "it serves again", 60)


def test_a_killed_agent_is_noticed_at_once(agentless: tuple[TowerWorld, View]) -> None:
    tower, caller = agentless
    agent = tower.members[MEMBER].agent
    agent.send(signal.SIGKILL)
    agent.wait(30)
    done = timed(caller)
    assert done.code == 1
    assert b"TWR201" in done.stderr
