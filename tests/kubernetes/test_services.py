"""Callers and agents who come by Services that a real kube-proxy keeps: three servers of one host at addresses of their
own, while one of them is killed, all are replaced, and their number changes."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab import assets
from tests.lab.controlplane import ControlPlane, run
from tests.lab.hostplane import crds
from tests.lab.network import lacking
from tests.lab.processes import ADOPTED, free_ports, wait_until
from tests.lab.servicenet import ServiceNetwork
from tests.lab.world import TowerWorld

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]
NAMESPACE = "tower-system"
MEMBER = "edge"
PATIENCE = 60.0
SERVED_AGAIN = 5.0
CALLERS = 2
TUNNELS = 8443
SERVERS = 3
LINKS = 9
QUICKLY = {"tower_server.replicas.balance.EVERY": 1.0}  # in place of half a minute


class Host:
    """Its servers, of which the first leads and holds the tunnel when a test begins anew."""

    def __init__(
        self, worlds: Sequence[TowerWorld], plane: ControlPlane, network: ServiceNetwork, tunnel_port: int
    ) -> None:
        self.worlds, self.plane, self.network, self.tunnel_port = worlds, plane, network, tunnel_port
        self.address = self.service(f"mc-{MEMBER}")

    def service(self, name: str) -> str:
        return self.plane.kubectl("get", "service", name, "-n", NAMESPACE, "-o", "jsonpath={.spec.clusterIP}").text

    def named(self) -> set[str]:
        """The servers that the slices send callers to."""
        selector = f"kubernetes.io/service-name=mc-{MEMBER}"
        found = self.plane.kubectl("get", "endpointslices", "-n", NAMESPACE, "-l", selector, "-o", "json").stdout
        endpoints = [each for piece in json.loads(found)["items"] for each in piece["endpoints"] or ()]
        return {one for each in endpoints for one in each["addresses"]}

    def ready(self, count: int) -> None:
        """From now on agents come to the first `count` servers."""
        self.plane.install(tunnel_service(self.network.servers[:count], self.tunnel_port))

    def leader(self) -> int:
        found = self.plane.kubectl("get", "lease", "tower-controller", "-n", NAMESPACE, "-o", "json").stdout
        holder = json.loads(found)["spec"]["holderIdentity"].rpartition("_")[0]
        return int(holder.rpartition("-")[2]) if holder else -1

    def held(self) -> list[float]:
        """How many tunnels each of them holds."""
        return [self.tunnels(index, world) for index, world in enumerate(self.worlds)]

    def owners(self) -> list[int]:
        return [index for index, tunnels in enumerate(self.held()) if tunnels]

    def tunnels(self, index: int, world: TowerWorld) -> float:
        url = f"http://{self.network.servers[index]}:{world.health_port}/metrics"
        text = run(["curl", "-s", "--max-time", "5", url], world.environment()).text
        wanted = (line for line in text.splitlines() if line.startswith("tower_tunnels{") and f'"{MEMBER}"' in line)
        return sum(float(line.split()[-1]) for line in wanted)

    def ask(self, deadline: float = 2.0) -> int:
        """The status of one request to the member by its Service; nobody is asked who they are but by its agent."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection((self.address, 6443), timeout=deadline) as raw,
            context.wrap_socket(raw, server_hostname=f"{MEMBER}.members.tower") as secured,
        ):
            secured.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = secured.recv(65536)
            return int(answer.split(b" ")[1]) if answer else 0

    @contextmanager
    def load(self) -> Iterator[list[float]]:
        """Callers without a pause; the moments at which one was served."""
        served: list[float] = []
        stop = threading.Event()

        def call() -> None:
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    if self.ask() == 401:
                        served.append(time.monotonic())
                stop.wait(0.05)

        threads = [threading.Thread(target=call) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: served, "callers are served", PATIENCE)
            yield served
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def again(self, index: int) -> None:
        world = self.worlds[index]
        world.start()
        ADOPTED.add(world.server.pid)


def longest_pause(served: Sequence[float], *, since: float) -> float:
    times = sorted(served)
    return max(later - earlier for earlier, later in itertools.pairwise(times) if later > since)


def tunnel_service(servers: Sequence[str], port: int) -> list[dict]:
    """By which agents come: the servers that were ready, as a Service with a selector would name them."""
    meta = {"name": "tower-tunnels", "namespace": NAMESPACE}
    spec = {"ports": [{"name": "tunnels", "port": TUNNELS, "targetPort": TUNNELS}]}
    endpoints = [{"addresses": [each], "conditions": {"ready": True}} for each in servers]
    slices = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**meta, "labels": {"kubernetes.io/service-name": meta["name"]}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "tunnels", "port": port, "protocol": "TCP"}],
    }
    return [{"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}, slices]


@pytest.fixture(scope="module")
def host(member: ControlPlane) -> Iterator[Host]:
    if reason := lacking():
        pytest.skip(f"no network namespaces here: {reason}")
    assets.ensure(["kube-proxy"])
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tower-")))
        network = stack.enter_context(ServiceNetwork(SERVERS))
        plane = stack.enter_context(ControlPlane(folder / "host", network=network, pods=False))  # type: ignore[arg-type]
        crds(plane)
        plane.kubectl("create", "namespace", NAMESPACE)
        stack.callback(network.proxy(plane, folder).stop)
        first, tunnel, health, replica = free_ports(4)
        plane.install(tunnel_service(network.servers[:1], tunnel))
        tunnels = plane.kubectl(
            "get", "service", "tower-tunnels", "-n", NAMESPACE, "-o", "jsonpath={.spec.clusterIP}"
        ).text
        store = {"kind": "kubernetes", "namespace": NAMESPACE, "kubeconfig": str(plane.admin_kubeconfig)}
        worlds: list[TowerWorld] = []
        for index, address in enumerate(network.servers):
            settings = {
                "store": store,
                "public_url": f"wss://{tunnels}:{TUNNELS}",
                "listen": f"{address}:{tunnel}",
                "health_address": f"{address}:{health}",
                "ports": {"range": f"{first}-{first + 20}", "bind": address},
                "callers": {"address": address, "cluster_address": address},
                "replica": {"name": f"tower-{index}", "listen": f"{address}:{replica}", "address": address},
            }
            own = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tower-")))
            world = TowerWorld(own, host="many", settings=settings, constants=QUICKLY, namespace=network.name)
            world.health_port = health
            worlds.append(stack.enter_context(world))
            if index == 0:  # alone it leads, and the tunnel can come nowhere else
                worlds[0].join(MEMBER, member)
        plane.install(tunnel_service(network.servers, tunnel))
        for world in worlds:
            wait_until(lambda world=world: world.cluster(MEMBER)["ready"] == "True", "every server knows it", PATIENCE)
        yield Host(worlds, plane, network, tunnel)


def test_callers_by_the_service_are_served_again_soon_after_the_owner_that_also_led_was_killed(host: Host) -> None:
    assert (host.leader(), host.owners()) == (0, [0])
    wait_until(lambda: host.named() == {host.network.servers[0]}, "the slices name the owner", PATIENCE)
    with host.load() as served:
        killed = time.monotonic()
        host.worlds[0].server.send(signal.SIGKILL)
        wait_until(lambda: served[-1] > killed + 0.5, "served again", PATIENCE)
        pause = longest_pause(served, since=killed)
        print(f"{pause:.2f} s without an answer")
        wait_until(lambda: host.leader() in (1, 2), "another server leads", PATIENCE)
        wait_until(lambda: host.owners(), "the agent is back", PATIENCE)
        owner = host.network.servers[host.owners()[0]]
        wait_until(lambda: host.named() == {owner}, "the slices name the new owner", PATIENCE)
    assert pause < SERVED_AGAIN
    host.worlds[0].stop_server()
    host.again(0)


def test_servers_that_are_replaced_one_by_one_leave_no_caller_waiting(host: Host) -> None:
    with host.load() as served:
        began = time.monotonic()
        for index in range(SERVERS):
            assert host.worlds[index].stop_server() == 0
            wait_until(lambda: host.network.servers[index] not in host.named(), "callers go elsewhere", PATIENCE)  # noqa: B023
            host.again(index)
            wait_until(lambda: host.worlds[index].cluster(MEMBER)["ready"] == "True", "it is back", PATIENCE)  # noqa: B023
        pause = longest_pause(served, since=began)
    print(f"{pause:.2f} s without an answer")
    assert pause < SERVED_AGAIN


def test_agents_of_the_one_server_left_spread_over_those_that_are_added_and_nobody_notices(host: Host) -> None:
    for index in (1, 2):
        assert host.worlds[index].stop_server() == 0
    host.ready(1)
    wait_until(lambda: host.named() == {host.network.servers[0]}, "one is left", PATIENCE)
    config = host.worlds[0].members[MEMBER].config
    config.write_text(config.read_text() + f"links: {LINKS}\n")
    host.worlds[0].restart_agent(MEMBER)
    wait_until(lambda: host.held() == [LINKS, 0, 0], "all tunnels stand there", PATIENCE)
    with host.load() as served:
        began = time.monotonic()
        for index in (1, 2):
            host.again(index)
        host.ready(SERVERS)
        wait_until(lambda: min(host.held()) > 0, "every server holds tunnels", PATIENCE)
        wait_until(lambda: host.named() == set(host.network.servers), "callers are sent to all of them", PATIENCE)
        pause = longest_pause(served, since=began)
    print(f"{host.held()} after {time.monotonic() - began:.1f} s; {pause:.2f} s without an answer")
    assert pause < SERVED_AGAIN
    assert host.ask(10.0) == 401
