"""`make bench-controller`: a thousand clusters asked for at once on a real apiserver, and a controller started anew.

One tower server as a process, under the account and rules of deploy/base; etcd and kube-apiserver are the real ones and
share the machine with it, so the CPU seconds of both stand beside the wall clock. Requests are those of the apiserver's
own audit log. Not counted as writes of a restart are the two Leases by which a server says that it is there and leads:
they are written whether there are clusters or none, and are given apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvloop

from bench.storm import run_of_ports
from bench.tower import reset_peak, usage
from daemon.kube.access import Access
from daemon.kube.client import Client
from daemon.kube.reflector import Reflector
from daemon.kube.resources import CLUSTERS, Object
from daemon.log import configure
from tests.deploy.rendering import namespaces, render
from tests.lab.controlplane import ControlPlane
from tests.lab.hostplane import crds
from tests.lab.world import TowerWorld

OUT: Final = Path(__file__).parent / "out" / "controller.json"
TARGETS: Final = {"initialised_s": 60.0, "rss_mib": 150.0, "restart_s": 15.0, "restart_writes": 0}
CREATES: Final = 16  # at once: what a GitOps tool or a script would do
PATIENCE: Final = 1800.0
METRICS_EVERY: Final = 1.0  # seconds; for each look the server writes out the figures of every cluster
QUIET: Final = 2.0  # seconds without a request that is not of a Lease: what was begun is finished
NAMESPACE: Final = "tower-system"
ACCOUNT: Final = f"system:serviceaccount:{NAMESPACE}:tower-server"
WRITES: Final = frozenset({"create", "update", "patch", "delete", "deletecollection"})
RBAC: Final = frozenset({"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"})
_LINE: Final = re.compile(r"^(tower_\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-controller", description=__doc__)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument(
        "--idle", type=float, default=600.0, help="seconds to watch half of them do nothing; 0 for none"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    configure(level="error")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the server listens on a port for each cluster
    with tempfile.TemporaryDirectory(prefix="tower-bench-") as name:
        figures = measure(Path(name), options.clusters, options.idle)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=2) + "\n")
    return report(figures, options.out)


def measure(folder: Path, clusters: int, idle: float) -> dict[str, Any]:
    """All figures, `initialised_s` and the others of TARGETS among them."""
    with ControlPlane(folder / "host", pods=False) as plane:
        world = _world(folder / "tower", plane, clusters)
        try:
            world.start()
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_Bench(world, plane, clusters).run(idle))
        finally:
            world.stop()


def _world(folder: Path, plane: ControlPlane, clusters: int) -> TowerWorld:
    crds(plane)
    namespaces(plane)
    plane.install([each for each in render(plane, "base") if each["kind"] in RBAC])
    token = plane.kubectl("create", "token", "tower-server", "-n", NAMESPACE, "--duration=4h").text
    ports = run_of_ports(clusters)
    settings = {
        "store": {
            "kind": "kubernetes",
            "namespace": NAMESPACE,
            "kubeconfig": str(plane.kubeconfig("tower-server", token=token)),
        },
        "ports": {"range": f"{ports.first}-{ports.last}", "bind": "127.0.0.1"},
        "callers": {"address": "127.0.0.1", "cluster_address": "10.77.0.1"},  # nobody calls by it here
    }
    folder.mkdir()
    return TowerWorld(folder, host="many", settings=settings)


@dataclass(frozen=True, slots=True)
class Moment:
    """How far the audit log and the CPU of both processes had come."""

    at: float
    audit: int
    server: float
    apiserver: float


class _Bench:
    """The steps, each from where the one before has left the host."""

    def __init__(self, world: TowerWorld, plane: ControlPlane, clusters: int) -> None:
        self._world, self._plane, self._clusters = world, plane, clusters
        self._apiserver = next(child for child in plane.children if child.name == "kube-apiserver")
        self._client = Client(Access.find(plane.admin_kubeconfig), user_agent="bench")
        self._figures: dict[str, Any] = {"clusters": clusters, "machine": _machine()}

    async def run(self, idle: float) -> dict[str, Any]:
        try:
            await self._until(lambda: self._metric("tower_leader") == 1, "the server leads")
            await self._create()
            await self._start_anew()
            if idle:
                await self._be_idle(idle)
        finally:
            self._client.close()
        return self._figures

    async def _create(self) -> None:
        names = [f"member-{number:04d}" for number in range(self._clusters)]
        seen = Reflector(self._client, CLUSTERS)
        following = asyncio.create_task(seen.run(), name="bench-clusters")
        try:
            await seen.wait_synced(10.0)
            say(f"{len(names)} clusters are asked for at once")
            reset_peak(self._world.server.pid)
            began, gate = self._moment(), asyncio.Semaphore(CREATES)

            async def create(name: str) -> None:
                async with gate:
                    await self._client.create(CLUSTERS, _resource(name), deadline=PATIENCE)

            async with asyncio.TaskGroup() as tasks:
                for name in names:
                    tasks.create_task(create(name))
            created = time.monotonic() - began.at
            await self._until(lambda: all(map(_initialised, seen.items.values())), "all are initialised")
            self._figures |= {"initialised_s": round(time.monotonic() - began.at, 1), "created_s": round(created, 1)}
            await self._quiet()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        bodies = list(seen.items.values())
        ports = [each["spec"]["connection"]["kubernetesAPIServerPort"] for each in bodies]
        if len(bodies) != self._clusters or len(set(ports)) != self._clusters:
            raise RuntimeError(f"{len(bodies)} clusters with {len(set(ports))} ports, not {self._clusters}")
        used = usage(self._world.server.pid)
        requests = self._requests(began.audit)
        self._figures |= {
            "requests": requests.total(),
            "requests_by_kind": _told(requests),
            "rss_mib": round(used.rss, 1),
            "rss_peak_mib": round(used.peak, 1),
            **self._cpu(began, "initialised"),
        }

    async def _start_anew(self) -> None:
        say("the server is started anew")
        await asyncio.to_thread(self._world.stop_server)
        said = self._world.folder.joinpath("tower-server.log").stat().st_size
        began = self._moment(of_server=False)
        await asyncio.to_thread(self._world.start)
        logged = self._world.server.log
        await self._until(lambda: b'"all-looked-at"' in _since(logged, said), "all were looked at", every=0.1)
        self._figures |= {
            "restart_s": round(time.monotonic() - began.at, 1),
            "restart_rss_mib": round(usage(self._world.server.pid).rss, 1),
            **self._cpu(began, "restart"),
        }
        await self._quiet()
        requests = self._requests(began.audit)
        writes = Counter({each: count for each, count in requests.items() if each[0] in WRITES})
        leases = {each for each in writes if each[1] == "leases"}
        self._figures |= {
            "restart_requests": requests.total(),
            "restart_writes": writes.total() - sum(writes[each] for each in leases),
            "restart_lease_writes": sum(writes[each] for each in leases),
            "restart_writes_by_kind": _told(writes),
            "ports_listening": round(self._metric("tower_ports", 'state="listening"')),
        }

    async def _be_idle(self, seconds: float) -> None:
        half = self._clusters // 2
        say(f"{half} of them are deleted")
        began = time.monotonic()
        gate = asyncio.Semaphore(CREATES)

        async def delete(name: str) -> None:
            async with gate:
                await self._client.delete(CLUSTERS, name, deadline=PATIENCE)

        async with asyncio.TaskGroup() as tasks:
            for number in range(half):
                tasks.create_task(delete(f"member-{number:04d}"))
        await self._until(lambda: self._metric("tower_clusters") == self._clusters - half, "they are gone")
        self._figures["deleted_s"] = round(time.monotonic() - began, 1)
        await self._quiet()
        say(f"{self._clusters - half} clusters do nothing for {seconds:.0f} s")
        start = self._moment()
        await asyncio.sleep(seconds)
        requests = self._requests(start.audit)
        self._figures["idle"] = {
            "clusters": self._clusters - half,
            "seconds": seconds,
            "requests": requests.total(),
            "writes_beside_leases": sum(n for each, n in requests.items() if each[0] in WRITES and each[1] != "leases"),
            "requests_by_kind": _told(requests),
            **self._cpu(start, "idle"),
        }

    # ---- looking ------------------------------------------------------------------------------------------------

    def _moment(self, *, of_server: bool = True) -> Moment:
        server = usage(self._world.server.pid).cpu if of_server else 0.0
        return Moment(time.monotonic(), self._audit_size(), server, usage(self._apiserver.pid).cpu)

    def _cpu(self, since: Moment, what: str) -> dict[str, float]:
        return {
            f"{what}_cpu_s": round(usage(self._world.server.pid).cpu - since.server, 1),
            f"{what}_apiserver_cpu_s": round(usage(self._apiserver.pid).cpu - since.apiserver, 1),
        }

    def _audit_size(self) -> int:
        return self._plane.audit_log.stat().st_size if self._plane.audit_log.exists() else 0

    def _requests(self, since: int) -> Counter[tuple[str, str]]:
        """The server's requests by verb and resource, of the part of the audit log after `since`. A watch counts once,
        when it begins."""
        with self._plane.audit_log.open("rb") as log:
            log.seek(since)
            return requests_of(log)

    def _metric(self, name: str, label: str = "") -> float:
        """The sum of a metric's series with that label; 0 for one that was never counted."""
        text = _http_get(self._world.health_port)
        return sum(
            float(value) for found, labels, value in _LINE.findall(text) if found == name and label in (labels or "")
        )

    async def _quiet(self) -> None:
        """Until nothing is asked of the apiserver but what keeps the Leases."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            before = self._audit_size()
            await asyncio.sleep(QUIET)
            if all(resource == "leases" for _, resource in self._requests(before)):
                return
        raise RuntimeError(f"the server does not come to rest:\n{self._world.server.tail()}")

    async def _until(self, done: Callable[[], bool], what: str, *, every: float = METRICS_EVERY) -> None:
        end = time.monotonic() + PATIENCE
        while not await asyncio.to_thread(done):
            if time.monotonic() > end or self._world.server.returncode is not None:
                raise RuntimeError(f"not within {PATIENCE:.0f} s: {what}\n{self._world.server.tail()}")
            await asyncio.sleep(every)


def requests_of(lines: Iterable[bytes]) -> Counter[tuple[str, str]]:
    """The server's own requests in lines of an audit log, by verb and resource."""
    counted: Counter[tuple[str, str]] = Counter()
    for line in lines:
        event = json.loads(line)
        about = event.get("objectRef")
        if event["user"].get("username") != ACCOUNT or about is None:
            continue
        if event["verb"] == "watch" and event["stage"] != "ResponseStarted":
            continue  # its end, which is counted when it begins
        named = "/".join(filter(None, (about["resource"], about.get("subresource"))))
        counted[event["verb"], named] += 1
    return counted


def report(figures: dict[str, Any], path: Path) -> int:
    """Says what was measured; 1 when a target was missed."""
    missed = [name for name, limit in TARGETS.items() if figures[name] > limit]
    for name, limit in TARGETS.items():
        verdict = "MISSED" if name in missed else "met"
        print(f"{name:16} {figures[name]:>8} (at most {limit:g}: {verdict})")
    print(f"{'requests':16} {figures['requests']:>8}")
    if "idle" in figures:
        idle = figures["idle"]
        print(
            f"idle: {idle['clusters']} clusters, {idle['seconds']:.0f} s: {idle['requests']} requests, "
            f"{idle['writes_beside_leases']} writes beside those of Leases"
        )
    print(f"written to {path}")
    return 1 if missed else 0


def _resource(name: str) -> Object:
    return {
        "apiVersion": CLUSTERS.api_version,
        "kind": CLUSTERS.kind,
        "metadata": {"name": name},
        "spec": {"connection": {"type": "proxy"}},
    }


def _initialised(body: Object) -> bool:
    held = (body.get("status") or {}).get("conditions") or ()
    return any(each.get("type") == "Initialized" and each.get("status") == "True" for each in held)


def _since(log: Path, size: int) -> bytes:
    with log.open("rb") as lines:
        lines.seek(size)
        return lines.read()


def _told(requests: Counter[tuple[str, str]]) -> dict[str, int]:
    return {f"{verb} {named}": count for (verb, named), count in requests.most_common()}


def _machine() -> str:
    return f"{os.cpu_count()} cores, Python {platform.python_version()}"


def _http_get(port: int) -> str:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
