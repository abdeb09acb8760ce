"""A minute in which the host's apiserver takes every request and answers none, under a tower whose records lie in it.

Whoever has a way to a member notices nothing, and what comes new needs no record that was read before: callers, a link
that was cut, an agent that was started anew. What does need one says so in time, and all of it heals by itself.
"""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.conftest import view
from tests.kubernetes.flows import flowing
from tests.kubernetes.views import View
from tests.lab.controlplane import ControlPlane
from tests.lab.hostplane import crds
from tests.lab.processes import wait_until
from tests.lab.world import TowerWorld
from tests.loopback.callers import lines, metrics, tunnels
from tests.loopback.relay import Network
from tests.tower_server.controller.illness import SILENT, IllApiserver, ill_apiserver_beside, silence, well

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(400)]
SILENCE = 60.0  # as long as an apiserver may be away while its etcd finds a leader or its machine is changed
NAMESPACE = "tower-unheard"
STEADY, RESTARTED, LATE = "unheard-1", "unheard-2", "unheard-3"
BACK = 60.0
ENTERS = 30.0
PAUSE = 4.0  # callers are held for 2 s; a record that is waited for takes 5
ASKED = ("get", "configmap", "one", "-n", "shared", "-o", "jsonpath={.data.name}")


@dataclass(frozen=True)
class Scene:
    world: TowerWorld
    ill: IllApiserver
    relay: Network
    callers: dict[str, View]


@pytest.fixture
def scene(place: Path, net: tuple[Network, int], host_plane: ControlPlane, member: ControlPlane) -> Iterator[Scene]:
    relay, port = net
    crds(host_plane)
    host_plane.kubectl("create", "namespace", NAMESPACE)
    with ill_apiserver_beside(host_plane, place / "ill") as ill:
        settings = {
            "store": {"kind": "kubernetes", "namespace": NAMESPACE, "kubeconfig": str(ill.kubeconfig)},
            "public_url": f"wss://127.0.0.1:{relay.port}",
            "replica": {"name": "unheard", "listen": "127.0.0.1:0"},
            "callers": {"address": "127.0.0.1", "cluster_address": "10.77.0.1"},  # nobody calls by it here
        }
        with TowerWorld(place / "w", host="unheard", settings=settings, tunnel_port=port) as world:
            for name in (STEADY, RESTARTED):
                world.join(name, member)
            callers = {name: view(member, name, world.kubeconfig(name)) for name in world.members}
            yield Scene(world, ill, relay, callers)
            ill.rule = well
    host_plane.kubectl("delete", "members", STEADY, RESTARTED, LATE, "--ignore-not-found")
    host_plane.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def served(caller: View) -> None:
    done = caller.kubectl(*ASKED)
    assert (done.code, done.text) == (0, "one"), done


def readiness(world: TowerWorld) -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", world.health_port, timeout=10)) as asked:
        asked.request("GET", "/readyz")
        return asked.getresponse().status


def leads(world: TowerWorld) -> bool:
    return metrics(world)["tower_leader"] == 1


def service(plane: ControlPlane) -> str:
    """Its uid; empty where there is none."""
    asked = ("get", "service", f"mc-{STEADY}", "-n", NAMESPACE, "-o", "jsonpath={.metadata.uid}")
    return plane.kubectl(*asked, check=False).text


def resumes(world: TowerWorld) -> list[dict[str, Any]]:
    return lines(world.members[STEADY].agent.log, "tunnel-resumed")


def test_nobody_who_has_a_way_to_a_member_notices_a_minute_of_silence(
    scene: Scene, host_plane: ControlPlane, member: ControlPlane
) -> None:
    world, ill, callers = scene.world, scene.ill, scene.callers
    wait_until(lambda: leads(world) and service(host_plane) != "", "it leads, and has made its Service", BACK)
    before, made = tunnels(world, STEADY), service(host_plane)
    direct = view(member, "direct", member.admin_kubeconfig)
    with flowing(member, callers[STEADY], direct, "unheard", every=0.1) as flows:
        ill.rule = silence
        ends = time.monotonic() + SILENCE
        host_plane.kubectl("delete", "service", f"mc-{STEADY}", "-n", NAMESPACE)
        served(callers[STEADY])
        taken_up = len(resumes(world))
        scene.relay.do("cut")
        wait_until(lambda: len(resumes(world)) > taken_up, "the tunnel taken up again", BACK)
        assert resumes(world)[-1]["seconds"] < PAUSE
        served(callers[STEADY])
        flows.more()
        world.restart_agent(RESTARTED)
        wait_until(lambda: callers[RESTARTED].kubectl(*ASKED).code == 0, "an agent that was started anew", ENTERS)
        refused = world.towerctl("add", "cluster", LATE, check=False)
        assert refused.code != 0
        assert b"TWR114" in refused.stderr, refused.stderr
        for command in (
            ("get", "clusters"),
            ("describe", "cluster", STEADY),
            ("get", "agents"),
            ("ping", STEADY, "-c", "1"),
        ):
            world.towerctl(*command)  # what the records do not decide is told without them
        listed = world.towerctl("get", "clusters")
        assert b"warning: agents are shown as of 20" in listed.stderr, listed
        assert listed.text.split().count("Connected") == 2, listed
        wait_until(lambda: not leads(world), "it leads no more", BACK)
        time.sleep(max(0.0, ends - time.monotonic()))  # the silence itself is what is tested
        assert ill.told[SILENT] > 1, "it is asked again and again"
        assert readiness(world) == 200, "a server that is taken out of its Service for that helps nobody"
        for caller in callers.values():
            served(caller)
        flows.more()
        ill.rule = well
        wait_until(lambda: leads(world), "it leads again", BACK)
        wait_until(lambda: service(host_plane) not in ("", made), "its Service, made again", BACK)
        world.towerctl("add", "cluster", LATE)
        flows.finish()
    assert tunnels(world, STEADY) == before, "it is one and the same tunnel"
    for name in callers:
        world.until_state(name, "Connected", deadline=BACK)
