"""kubectl through everything that a network and an operator do to a tunnel: nothing is lost, nothing comes twice.

Real processes against a real apiserver. The link is cut, falls silent in the middle (half-open) and is taken up again;
either end is suspended for less than the window. Each fault is followed by the next as soon as data has moved again.
`TOWER_COPY_MIB` sets how much is copied each way.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.conftest import view
from tests.kubernetes.flows import Copy, flowing
from tests.kubernetes.test_streams import digest
from tests.kubernetes.views import View
from tests.lab.controlplane import ControlPlane
from tests.lab.processes import Child, wait_until
from tests.lab.world import TowerWorld
from tests.loopback.callers import tunnels
from tests.loopback.relay import Network

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]
NAME = "battered"
# A dead link is noticed within moments, so that many faults fit into a test; the window is the default.
CONSTANTS = {"PING_INTERVAL": 0.5, "DEAD_AFTER": 2.0, "BACKOFF_MAX": 1.0}
MIB = 1024 * 1024
COPY_MIB = int(os.environ.get("TOWER_COPY_MIB", "1024"))
FAULTS = 56
BACK = 60.0


@pytest.fixture(scope="module")
def tower(place: Path, net: tuple[Network, int], member: ControlPlane) -> Iterator[TowerWorld]:
    relay, port = net
    settings = {"public_url": f"wss://127.0.0.1:{relay.port}"}
    with TowerWorld(place / "w", host=NAME, settings=settings, constants=CONSTANTS, tunnel_port=port) as world:
        world.join(NAME, member)
        yield world


@pytest.fixture
def caller(member: ControlPlane, tower: TowerWorld) -> View:
    return view(member, "tunnel", tower.kubeconfig(NAME))


@pytest.fixture
def direct(member: ControlPlane) -> View:
    return view(member, "direct", member.admin_kubeconfig)


class Faults:
    """Does the next fault and waits until the tunnel has been taken up again."""

    def __init__(self, tower: TowerWorld, relay: Network) -> None:
        self._tower, self._relay = tower, relay
        self.done: dict[str, int] = {}

    def next(self) -> None:
        number = sum(self.done.values())
        match number % 28:
            case 4:
                self._do("the agent suspended", lambda: self._suspend(self._tower.members[NAME].agent))
            case 12:
                self._do("the server suspended", lambda: self._suspend(self._tower.server))
            case 20:
                self._do("half-open", self._half_open)
            case _:
                self._do("cut", lambda: self._relay.do("cut"))

    def _do(self, what: str, fault) -> None:
        before = self._resumes()
        fault()
        wait_until(lambda: self._resumes() > before, f"the tunnel taken up again after: {what}", BACK)
        self.done[what] = self.done.get(what, 0) + 1

    def _resumes(self) -> int:
        return self._tower.members[NAME].agent.log.read_text().count('"tunnel-resumed"')

    def _suspend(self, child: Child) -> None:
        """For longer than the other end bears, and shorter than the window."""
        child.send(signal.SIGSTOP)
        try:
            time.sleep(1.5 * CONSTANTS["DEAD_AFTER"])  # the suspension itself
        finally:
            child.send(signal.SIGCONT)

    def _half_open(self) -> None:
        before = self._silences()
        self._relay.do("stall")
        wait_until(lambda: self._silences() > before, "the agent notices the silence", BACK)
        self._relay.do("cut")
        self._relay.do("flow")

    def _silences(self) -> int:
        return self._tower.members[NAME].agent.log.read_text().count("nothing heard")


def moved(tower: TowerWorld) -> int:
    return sum(item["bytes_in"] + item["bytes_out"] for item in tower.call("GET", "/v1/tunnels")[1]["items"])


def test_kubectl_notices_no_cut_no_silence_and_no_suspension(
    member: ControlPlane, tower: TowerWorld, net: tuple[Network, int], caller: View, direct: View, tmp_path: Path
) -> None:
    source, block = tmp_path / "source", os.urandom(MIB)
    with source.open("wb") as file:
        for number in range(COPY_MIB):
            file.write(number.to_bytes(8, "big") + block[8:])
    faults, before = Faults(tower, net[0]), tunnels(tower, NAME)
    share = 2 * COPY_MIB * MIB // FAULTS  # of what is copied, between two faults
    with flowing(member, caller, direct, "battered") as flows:
        began = time.monotonic()
        copy = Copy(caller, tmp_path, pod="battered/pod", deadline=600.0)
        try:
            while sum(faults.done.values()) < FAULTS:
                at = moved(tower)
                wait_until(lambda at=at: moved(tower) > at + share or not copy.running, "the copy goes on", BACK)
                faults.next()
            flows.more()
        finally:
            copy.join()
        took = time.monotonic() - began
        lines = flows.finish()
    assert digest(tmp_path / "inside") == digest(source)
    assert digest(tmp_path / "back") == digest(source)
    assert faults.done["cut"] >= 50
    assert tunnels(tower, NAME) == before, "it is one and the same tunnel"
    print(f"{COPY_MIB} MiB each way in {took:.0f} s through {faults.done}; lines {lines}")
