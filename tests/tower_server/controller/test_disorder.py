"""No order in which the watches tell what happened costs a cluster anything. A failure names its seed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest

from daemon.faults import TowerError
from daemon.kube.resources import CLUSTERS, MEMBERS, SERVICES
from tests.tower_server.controller import disorder
from tests.tower_server.controller.disorder import NAMESPACE, Disorder
from tower_server.controller import controller
from tower_server.controller.limits import TIDY_EVERY

MOMENT = 5.0  # of a time that costs nothing
SEEDS = range(14)
RIVALS = range(1000, 1008)  # each takes longer: they depose each other all the time
DEEDS = 24


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "time", SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time()))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_leader_and_the_next_one_that_hear_late_take_nothing_from_a_cluster(seed: int) -> None:
    disorder.play(seed, deeds=DEEDS, rivals=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", RIVALS)
def test_two_that_both_believe_to_lead_take_nothing_from_a_cluster(seed: int) -> None:
    disorder.play(seed, deeds=DEEDS, rivals=True)


def in_order(deeds: Callable[[Disorder], Awaitable[None]]) -> None:
    """One controller that hears of everything at once."""

    async def run() -> None:
        made = Disorder(0, rivals=False)
        made.late, made.server.failures = False, 0.0
        await made.start("one")
        try:
            await asyncio.sleep(MOMENT)
            await deeds(made)
            await asyncio.sleep(MOMENT)
            made.check()
        finally:
            await made.stop("one")

    with asyncio.Runner(loop_factory=disorder.VirtualLoop) as runner:
        runner.run(run())


def test_a_cluster_that_is_kept_when_its_kind_goes_stays_published() -> None:
    async def deeds(made: Disorder) -> None:
        spec = {"connection": {"type": "proxy"}, "externalKubeAPIEnabled": True}
        await made.person.create(CLUSTERS, {"metadata": {"name": "alpha"}, "spec": spec})
        await asyncio.sleep(MOMENT)
        before = made.server.find(SERVICES, "mc-alpha-external", NAMESPACE)
        assert before is not None
        await made.server.take_kind(CLUSTERS)
        await asyncio.sleep(MOMENT)
        after = made.server.find(SERVICES, "mc-alpha-external", NAMESPACE)
        assert after is not None
        assert after["metadata"]["uid"] == before["metadata"]["uid"]
        made.server.give_kind(CLUSTERS)

    in_order(deeds)


def test_a_resource_of_type_direct_beside_a_cluster_that_was_added_by_hand_is_left_alone() -> None:
    """It leads elsewhere: its endpoint is its owner's."""

    async def deeds(made: Disorder) -> None:
        await made.by_hand("alpha")
        await asyncio.sleep(MOMENT)
        connection = {"type": "direct", "kubernetesAPIEndpoint": "https://elsewhere:6443"}
        await made.person.create(CLUSTERS, {"metadata": {"name": "alpha"}, "spec": {"connection": connection}})
        await asyncio.sleep(MOMENT)
        found = made.server.find(CLUSTERS, "alpha")
        assert found is not None
        assert found["spec"]["connection"] == connection
        assert "finalizers" not in found["metadata"]
        assert made.server.find(MEMBERS, "alpha") is not None

    in_order(deeds)


@pytest.mark.slow
@pytest.mark.parametrize("error", [TowerError("TWR114", "429: too many requests"), KeyError("uid")], ids=repr)
def test_what_cannot_be_tidied_ends_no_term_and_is_tried_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deeds(made: Disorder) -> None:
        registry, (_, leading) = made.registries["one"], made.running["one"]
        writer, calls = leading.writer, 0

        async def fails() -> list[str]:
            nonlocal calls
            calls += 1
            raise error

        monkeypatch.setattr(registry, "tidy", fails)
        monkeypatch.setattr(registry.allocation, "tidy", fails)
        await asyncio.sleep(4 * TIDY_EVERY)
        assert calls >= 3
        assert writer is not None
        assert leading.writer is writer, "the term goes on"

    in_order(deeds)


def test_a_slice_whose_service_somebody_deleted_goes_with_its_cluster() -> None:
    async def deeds(made: Disorder) -> None:
        await made.person.create(CLUSTERS, {"metadata": {"name": "alpha"}, "spec": {"connection": {"type": "proxy"}}})
        await asyncio.sleep(MOMENT)
        await made.stop("one")
        await made.person.delete(SERVICES, "mc-alpha", namespace=NAMESPACE)
        await made.person.delete(CLUSTERS, "alpha")
        await asyncio.sleep(20.0)
        await made.start("one")
        await asyncio.sleep(20.0)

    in_order(deeds)
