"""Members that stay as they are cost their host's apiserver nothing, and one that comes and goes costs a few writes.

A whole tower server in the test's loop, on a real apiserver, with agents that report other figures every moment. Time
is scaled: probes, reports, housekeeping and the controller's own looks come fifty times as often as they do, so that
twelve seconds hold what is done in ten minutes. Leases are written by the clock and not scaled; they are counted apart.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from daemon.kube.client import Client
from daemon.kube.resources import MEMBERS
from protocol import defaults
from protocol.constants import Code
from tests.lab.controlplane import ControlPlane
from tests.lab.hostplane import crds
from tests.tower_server.controller.kit import said
from tests.tower_server.kit import Agent, Running, admin, enrol, running
from tests.tower_server.test_ports import free_range

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(180)]
NAMESPACE = "tower-beats"
MEMBERS_OF_HOST = 5
FASTER = 50.0
WHILE = 600.0 / FASTER
PATIENCE = 60.0


class Beating:
    """An agent that reports as often as agents do, on the scaled clock, and never twice the same."""

    def __init__(self, agent: Agent, name: str, number: int) -> None:
        self.agent, self.name, self.version = agent, name, "v1.34.0"
        self.reports = 0
        self._number = number

    async def run(self) -> None:
        while True:
            self.reports += 1
            figures = {"count": self.reports * 7, "failed": 0, "seconds": self.reports / 3}
            probe = {"ready": True, "at": 1.8e9 + self.reports, "seconds": 0.01 * self.reports, "code": None}
            facts = {"version": self.version, "uid": f"uid-{self._number}", "nodes": 3}
            control = self.agent.control
            if control is not None and control.transport is not None and not control.transport.is_closing():
                control.send("status", probe={**probe, **facts}, requests=figures, **facts)
            await asyncio.sleep(defaults.PROBE_INTERVAL)


@pytest.fixture
def _scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (
        "tower_server.housekeeping.EVERY",
        "tower_server.controller.hosting.LOOK_EVERY",
        "tower_server.probing.LOOK_EVERY",
    ):
        module, _, name = place.rpartition(".")
        monkeypatch.setattr(place, getattr(__import__(module, fromlist=[name]), name) / FASTER)
    monkeypatch.setattr(defaults, "PROBE_INTERVAL", defaults.PROBE_INTERVAL / FASTER)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every request to the host's apiserver: method and path."""
    heard: list[tuple[str, str]] = []
    once = Client._once

    async def noted(self: Client, ask: Any, method: str, target: str, *more: Any, **flags: Any) -> Any:
        heard.append((method, target))
        return await once(self, ask, method, target, *more, **flags)

    monkeypatch.setattr(Client, "_once", noted)
    return heard


@asynccontextmanager
async def beating(folder: Path, plane: ControlPlane, count: int) -> AsyncIterator[tuple[Running, list[Beating]]]:
    crds(plane)
    plane.kubectl("create", "namespace", NAMESPACE, check=False)
    store = {"kind": "kubernetes", "namespace": NAMESPACE, "kubeconfig": str(plane.admin_kubeconfig)}
    replica, free = {"name": "beats", "listen": "127.0.0.1:0"}, free_range(3 * count)
    ports = {"range": (free.first, free.last), "bind": "127.0.0.1"}
    found: list[Beating] = []
    async with (
        running(folder, store=store, replica=replica, ports=ports) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        for number in range(count):
            name = f"beat-{number}"
            agent = Agent(server, await enrol(server, await server.add(name)))
            await agent.connect()
            made = Beating(agent, name, number)
            task = asyncio.create_task(made.run())
            stack.push_async_callback(asyncio.gather, task, return_exceptions=True)
            stack.callback(task.cancel)
            found.append(made)
        try:
            yield server, found
        finally:
            for made in found:
                await made.agent.close()
                await admin(server, "DELETE", f"/v1/clusters/{made.name}")


async def status(server: Running, name: str) -> Any:
    return await server.services.store.client.get(MEMBERS, name)


async def until(what: str, true: Any) -> None:
    end = asyncio.get_running_loop().time() + PATIENCE
    while not await true():
        assert asyncio.get_running_loop().time() < end, f"not within {PATIENCE:g} s: {what}"
        await asyncio.sleep(0.1)


def settled(asked: list[tuple[str, str]]) -> Any:
    """Whether nothing but Leases was asked for or written for a second."""
    counts: list[int] = []

    async def quiet() -> bool:
        counts.append(len(of_members(asked)))
        return len(counts) > 10 and counts[-1] == counts[-11]

    return quiet


def of_members(asked: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What was asked for a cluster's sake, or changed for any; not Leases, nor what a server reads for its own."""
    return [each for each in asked if "/leases" not in each[1] and (each[0] != "GET" or "beat-" in each[1])]


@pytest.mark.usefixtures("_scaled")
async def test_members_that_stay_as_they_are_cost_nothing_and_a_change_costs_its_write(
    tmp_path: Path, host_plane: ControlPlane, asked: list[tuple[str, str]]
) -> None:
    async with beating(tmp_path, host_plane, MEMBERS_OF_HOST) as (server, members):
        for each in members:

            async def ready(name: str = each.name) -> bool:
                return bool(said(await status(server, name), "MemberReady") == "True")

            await until(f"{each.name} is ready", ready)
        await until("everything is written", settled(asked))
        start, beats = len(asked), sum(each.reports for each in members)
        await asyncio.sleep(WHILE)
        window = asked[start:]
        beats = sum(each.reports for each in members) - beats
        assert beats > 5 * MEMBERS_OF_HOST, "the agents did report meanwhile"
        assert of_members(window) == []
        leases = sum("/leases" in path for _, path in window)
        print(f"{beats} reports of {len(members)} members: {leases} requests for leases, {len(window) - leases} others")

        before = len(asked)
        members[0].version = "v1.35.0"

        async def told() -> bool:
            return bool((await status(server, members[0].name))["status"].get("version") == "v1.35.0")

        await until("the new version is written", told)
        writes = [each for each in of_members(asked[before:]) if each[0] != "GET"]
        assert len(writes) == 1
        assert f"/members/{members[0].name}/status" in writes[0][1]


@pytest.mark.usefixtures("_scaled")
async def test_a_member_that_comes_and_goes_is_written_of_a_few_times_and_callers_are_served_all_the_while(
    tmp_path: Path, host_plane: ControlPlane, asked: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tower_server.flapping.STEADY", 10.0)
    async with beating(tmp_path, host_plane, 1) as (server, members):
        restless, name = members[0].agent, members[0].name

        async def ready() -> bool:
            return bool(said(await status(server, name), "MemberReady") == "True")

        async def comes_and_goes(times: int) -> None:
            live = server.member(name)
            for _ in range(times):
                for tunnel in list(live.tunnels):
                    tunnel.close(Code.DEAD_PEER, "cut by a test")
                await until("it is lost", lambda: asyncio.sleep(0, live.verdict.ready == "False"))
                await restless.connect()
                await until("it is back", lambda: asyncio.sleep(0, live.verdict.ready == "True"))

        await until("it is ready", ready)
        await until("everything is written", settled(asked))
        before = len(asked)
        await comes_and_goes(3)

        async def flaps() -> bool:
            found = await status(server, name)
            return bool(said(found, "AgentAvailable", "reason") == "Flapping" and "TWR229" in str(found["status"]))

        await until("that it flaps is said", flaps)
        writes = [each for each in of_members(asked[before:]) if each[0] != "GET"]
        listed = (await admin(server, "GET", f"/v1/clusters/{name}")).json()
        assert (listed["ready"], bool(listed["flapping"])) == ("True", True), "an operator is told the truth"
        during = len(asked)
        await comes_and_goes(10)
        still = [each for each in of_members(asked[during:]) if each[0] != "GET"]
        print(f"{len(writes)} writes until it was said to flap, {len(still)} for ten losses after that")
        assert still == []
        await until("it has settled", ready)
        others = [each for each in of_members(asked[before:]) if each[0] != "GET" and f"{name}" not in each[1]]
        assert [each for each in others if "/events" not in each[1] and "/secrets/" not in each[1]] == []
