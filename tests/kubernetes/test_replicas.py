"""Three servers of one host on one real apiserver, each at an address of its own; one agent that comes by a balancer.

Callers are sent to every server, not to the owner of the tunnel alone. The balancer stands in for the Service that
agents dial: the first server that listens gets them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.kubernetes.conftest import view
from tests.lab.controlplane import ControlPlane
from tests.lab.hostplane import crds
from tests.lab.processes import ADOPTED, Child, free_ports, wait_until
from tests.lab.world import ROOT, TowerWorld

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]
NAMESPACE = "tower-replicas"
MEMBER = "edge"
PATIENCE = 60.0
SERVED_AGAIN = 5.0


class Host:
    """The three servers."""

    def __init__(self, worlds: Sequence[TowerWorld], plane: ControlPlane) -> None:
        self.worlds, self.plane = worlds, plane
        self.port = worlds[0].cluster(MEMBER)["ports"]["kubernetes"]

    def owner(self) -> int:
        """Which of them holds the tunnel: the one whose own metrics say so."""
        return next(index for index, world in enumerate(self.worlds) if holds(world))

    def until_slices_name(self, *indexes: int) -> float:
        """Waits until the cluster's EndpointSlices send callers to these servers; the seconds that it took."""
        began, wanted = time.monotonic(), {endpoint(index) for index in indexes}
        selector = f"kubernetes.io/service-name=mc-{MEMBER}"

        def named() -> set[str]:
            found = self.plane.kubectl("get", "endpointslices", "-n", NAMESPACE, "-l", selector, "-o", "json").stdout
            endpoints = [each for piece in json.loads(found)["items"] for each in piece["endpoints"]]
            return {one for each in endpoints for one in each["addresses"]}

        wait_until(lambda: named() == wanted, f"slices that name {sorted(wanted)}", PATIENCE)
        return time.monotonic() - began

    def ask(self, index: int, *, deadline: float = 10.0) -> int:
        """The status of one request to the member by the port of one server."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection((address(index), self.port), timeout=deadline) as raw,
            context.wrap_socket(raw, server_hostname=f"{MEMBER}.members.tower") as secured,
        ):
            secured.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = secured.recv(65536)
            return int(answer.split(b" ")[1]) if answer else 0


def address(index: int) -> str:
    return f"127.0.0.{index + 2}"


def endpoint(index: int) -> str:
    """Its address in slices, which hold no loopback one; nobody calls by it here."""
    return f"10.77.0.{index + 1}"


def holds(world: TowerWorld) -> bool:
    if world.server.returncode is not None:
        return False
    with socket.create_connection(("127.0.0.1", world.health_port), timeout=5) as conn:
        conn.sendall(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
        text = b"".join(iter(lambda: conn.recv(65536), b"")).decode()
    line = next(
        (each for each in text.splitlines() if each.startswith("tower_tunnels{") and f'"{MEMBER}"' in each), "0"
    )
    return float(line.split()[-1]) > 0


@pytest.fixture(scope="module")
def host(host_plane: ControlPlane, member: ControlPlane) -> Iterator[Host]:
    crds(host_plane)
    host_plane.kubectl("create", "namespace", NAMESPACE)
    store = {"kind": "kubernetes", "namespace": NAMESPACE, "kubeconfig": str(host_plane.admin_kubeconfig)}
    first, balanced, *tunnels = free_ports(5)
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tower-")))
        arguments = [sys.executable, "-m", "tests.lab.balancer", *map(str, (balanced, *tunnels))]
        balancer = Child("balancer", arguments, log=logs / "balancer.log", cwd=ROOT)
        stack.callback(balancer.stop)
        worlds: list[TowerWorld] = []
        for index in range(3):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tower-")))
            settings = {
                "store": store,
                "public_url": f"wss://127.0.0.1:{balanced}",
                "ports": {"range": f"{first}-{first + 20}", "bind": address(index)},
                "callers": {"address": address(index), "cluster_address": endpoint(index)},
                "replica": {"name": f"tower-{index}", "listen": f"{address(index)}:0", "address": address(index)},
            }
            world = TowerWorld(folder, host="many", settings=settings, tunnel_port=tunnels[index])
            worlds.append(stack.enter_context(world))
        worlds[0].join(MEMBER, member)
        for world in worlds:
            wait_until(lambda world=world: world.cluster(MEMBER)["ready"] == "True", "every server knows it", PATIENCE)
        yield Host(worlds, host_plane)
    host_plane.kubectl("delete", "members", "--all")


def test_a_caller_reaches_the_member_by_every_server(host: Host, member: ControlPlane) -> None:
    assert [holds(world) for world in host.worlds].count(True) == 1
    for world in host.worlds:
        through = view(member, f"by-{world.folder.name}", world.kubeconfig(MEMBER))
        got = through.kubectl("get", "configmap", "one", "-n", "shared", "-o", "jsonpath={.data.name}")
        assert got.text == "one", got.stderr
        shown = world.cluster(MEMBER)
        assert (shown["state"], shown["tunnels"]) == ("Connected", 1)
    host.until_slices_name(host.owner())


def test_the_audit_lines_of_both_servers_name_the_caller(host: Host) -> None:
    owner = host.owner()
    other = (owner + 1) % 3
    assert host.ask(other) == 401  # nobody is asked who they are but by the member's agent

    def lines(index: int, event: str) -> list[dict]:
        found = []
        for line in host.worlds[index].server.log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                found.append(entry) if entry.get("event") == event else None
        return found

    def pairs() -> list[tuple[dict, dict]]:
        near = {each["connection"]: each for each in lines(other, "connection")}
        return [(near[far["connection"]], far) for far in lines(owner, "passed") if far["connection"] in near]

    wait_until(pairs, "a line in both logs", PATIENCE)
    near, far = pairs()[-1]
    assert (near["caller"], near["cluster"]) == (far["caller"], MEMBER)
    assert far["via"] == f"tower-{other}"
    assert (near["bytes_up"], near["bytes_down"]) == (far["bytes_up"], far["bytes_down"])


def test_an_owner_that_is_killed_under_load_costs_callers_of_the_others_seconds(host: Host) -> None:
    owner = host.owner()
    others = [index for index in range(3) if index != owner]
    served: dict[int, list[float]] = {index: [] for index in others}
    stop = threading.Event()

    def load(index: int) -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                if host.ask(index, deadline=2.0) == 401:
                    served[index].append(time.monotonic())

    threads = [threading.Thread(target=load, args=(index,)) for index in others]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: all(served.values()), "callers are served", PATIENCE)
        killed = time.monotonic()
        host.worlds[owner].server.send(signal.SIGKILL)
        wait_until(lambda: all(times[-1] > killed + 0.5 for times in served.values()), "served again", PATIENCE)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for index, times in served.items():
        pause = max(later - earlier for earlier, later in itertools.pairwise(times) if later > killed)
        print(f"server {index}: {pause:.2f} s without an answer when the owner was killed")
        assert pause < SERVED_AGAIN
    wait_until(lambda: any(map(holds, host.worlds)), "another server holds the tunnel", PATIENCE)
    took = host.until_slices_name(host.owner())
    print(f"the slices named the new owner {took:.2f} s later")
    world = host.worlds[owner]
    world.stop_server()
    world.start()
    ADOPTED.add(world.server.pid)
    wait_until(lambda: world.cluster(MEMBER)["ready"] == "True", "the killed server knows who holds it", PATIENCE)
    assert host.ask(owner) == 401


def test_an_owner_that_stops_leaves_its_members_to_the_others_and_takes_its_lease_away(
    host: Host, host_plane: ControlPlane
) -> None:
    owner = host.owner()
    other = (owner + 1) % 3
    world = host.worlds[owner]
    assert world.stop_server() == 0
    wait_until(lambda: host.worlds[other].cluster(MEMBER)["ready"] == "True", "another server has it", PATIENCE)
    wait_until(lambda: host.ask(other) == 401, "callers are served", PATIENCE)
    leases = host_plane.kubectl("get", "leases", "-n", NAMESPACE, "-o", "name").text
    assert f"tower-replica-tower-{owner}" not in leases
    assert f"tower-replica-tower-{other}" in leases
    world.start()
    ADOPTED.add(world.server.pid)
    wait_until(lambda: host.ask(owner) == 401, "it passes callers on once it is back", PATIENCE)


def test_without_an_owner_every_server_says_why(host: Host) -> None:
    agent = next(world.members[MEMBER].agent for world in host.worlds if MEMBER in world.members)
    agent.stop()
    for index, world in enumerate(host.worlds):
        wait_until(lambda world=world: world.cluster(MEMBER)["state"] == "TunnelDown", "it is down", PATIENCE)
        assert host.ask(index) == 503
        assert world.cluster(MEMBER)["code"] == "TWR201"
    host.until_slices_name(0, 1, 2)
