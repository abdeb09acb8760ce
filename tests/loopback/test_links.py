"""Several tunnels of one cluster, by links and by replicas: new streams go where they are served well."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.processes import wait_until
from tests.lab.world import TowerWorld
from tests.loopback.callers import Caller, logs, metrics, tunnels, watching
from tests.loopback.member import BackendMember
from tests.loopback.relay import Network
from tests.loopback.replicas import second_replica

pytestmark = pytest.mark.slow
NAME = "edge"
CONSTANTS = {"BACKOFF_MAX": 1.0, "RESUME_WINDOW": 3.0}
BACK = 60.0


@pytest.fixture(scope="module")
def tower(place: Path, net: tuple[Network, int], member: BackendMember) -> Iterator[TowerWorld]:
    relay, port = net
    settings = {"public_url": f"wss://127.0.0.1:{relay.port}"}
    with TowerWorld(place / "w", settings=settings, constants=CONSTANTS, tunnel_port=port) as world:
        world.join(NAME, member, credential=member.by_token, settings={"links": 2})
        yield world


@pytest.fixture
def caller(tower: TowerWorld) -> Caller:
    return Caller(tower.kubeconfig(NAME))


@pytest.fixture
def relay(tower: TowerWorld, net: tuple[Network, int]) -> Network:
    both(tower)
    return net[0]


def both(tower: TowerWorld, state: str = "Open", count: int = 2) -> list[dict[str, Any]]:
    """The cluster's tunnels, once so many are in this state."""
    items: list[dict[str, Any]] = []

    def there() -> bool:
        items[:] = tower.call("GET", f"/v1/tunnels?cluster={NAME}")[1]["items"]
        return [item["state"] for item in items] == [state] * count

    wait_until(there, f"{count} tunnels that are {state}", BACK)
    return items


def carried(tower: TowerWorld) -> Counter[str]:
    """How many callers' streams each tunnel has."""
    items = tower.call("GET", f"/v1/streams?cluster={NAME}")[1]["items"]
    return Counter(item["tunnel"] for item in items if item["service"] == "kubernetes" and item["connection_id"])


def test_streams_are_spread_over_the_links_of_one_agent_and_shown(tower: TowerWorld, caller: Caller) -> None:
    first, second = both(tower)
    assert (first["agent"], first["remote"] != second["remote"]) == (second["agent"], True)
    listed = json.loads(tower.towerctl("get", "tunnels", "-o", "json").stdout)["items"]
    assert sorted(item["id"] for item in listed) == sorted([first["id"], second["id"]])
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(watching(caller)) for _ in range(6)]
        assert set(carried(tower).values()) == {3}
        for goes_on in streams:
            goes_on()
    assert metrics(tower)[f'tower_tunnels{{dialect="tower.v1",member_cluster="{NAME}"}}'] == 2
    assert metrics(tower, NAME)['tower_agent_tunnels{host="lab"}'] == 2


def test_losing_one_link_leaves_the_streams_of_the_other(tower: TowerWorld, caller: Caller, relay: Network) -> None:
    before = tunnels(tower, NAME)
    with contextlib.ExitStack() as stack:
        streams: list[Callable[[], None]] = []
        while len(carried(tower)) < 2:
            streams.append(stack.enter_context(watching(caller)))
        with logs(tower.members[NAME].agent.log, "tunnel-(down|cut)", "lab"):
            relay.do("cut one")
        going = 0
        for goes_on in streams:
            with contextlib.suppress(OSError, StopIteration):
                goes_on()
                going += 1
        assert going >= len(streams) // 2
        assert caller.ask("/one-link").status == 200
    both(tower)
    assert set(tunnels(tower, NAME)) & set(before), "the other link is the one of before"
    assert tower.cluster(NAME)["ready"] == "True"


def test_a_link_that_stalls_gets_no_new_streams_and_is_found_dead_later(
    tower: TowerWorld, caller: Caller, relay: Network
) -> None:
    relay.do("stall one")
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(4):  # whatever goes to the stalled link makes it owe an answer
                stack.enter_context(caller.plain())
            wait_until(lambda: stalled_of(tower), "a tunnel that is stalled", BACK)
        (stalled,) = stalled_of(tower)
        before = carried(tower)[stalled]
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(watching(caller))
            assert time.monotonic() - began < 5.0
            assert carried(tower)[stalled] <= before
    finally:
        relay.do("flow")


def stalled_of(tower: TowerWorld) -> list[str]:
    items = tower.call("GET", f"/v1/tunnels?cluster={NAME}")[1]["items"]
    return [item["id"] for item in items if item["state"] == "Stalled"]


def test_two_replicas_share_the_streams_and_one_that_dies_leaves_the_others(
    tower: TowerWorld, caller: Caller, relay: Network
) -> None:
    first = {item["instance"] for item in both(tower)}
    with second_replica(tower, NAME) as other, contextlib.ExitStack() as stack:
        four = both(tower, count=4)
        agents = {item["agent"] for item in four}
        assert len(agents) == 1, "replicas share one identity"
        streams = [stack.enter_context(watching(caller)) for _ in range(8)]
        spread = carried(tower)
        assert set(spread.values()) == {2}
        other.kill()
        lost = {item["id"] for item in four if item["instance"] not in first}
        wait_until(lambda: not lost & set(tunnels(tower, NAME)), "the end of the killed replica's tunnels", BACK)
        going = 0
        for goes_on in streams:
            with contextlib.suppress(OSError, StopIteration):
                goes_on()
                going += 1
        assert going == 4
    assert {item["instance"] for item in both(tower)} == first
