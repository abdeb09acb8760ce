"""What people, clusters and a sick apiserver do to a controller: each is told of on an object or in an Event, the
others go on, and nothing is lost. (Ports, annotations, twins, an edited Cluster: tests/tower_server/controller.)"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from daemon.kube.errors import Invalid, NotFound
from daemon.kube.resources import CLUSTERS, EVENTS, MEMBERS, SERVICES
from tests.lab.controlplane import ControlPlane
from tests.lab.hostplane import CRDS, crds
from tests.tower_server.controller.illness import Asked, IllApiserver, ill_apiserver, silence, well
from tests.tower_server.controller.kit import QUICK, Host, host, records, running, said, up
from tower_server.store.base import Kind

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio, pytest.mark.timeout(180)]


@pytest_asyncio.fixture
async def lab(host_plane: ControlPlane) -> AsyncIterator[Host]:
    crds(host_plane)
    async with host(host_plane) as made:
        yield made


@pytest_asyncio.fixture
async def ill(host_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[IllApiserver]:
    async with ill_apiserver(host_plane, tmp_path / "ill") as made:
        yield made


async def told(lab: Host, name: str, reason: str) -> list[str]:
    listing = await lab.client.list(EVENTS, namespace="default", fields=f"involvedObject.name={name}")
    return [each["message"] for each in listing.items if each["reason"] == reason]


@pytest.fixture
def lenient(lab: Host, host_plane: ControlPlane, tmp_path: Path) -> Iterator[None]:
    """As where KubeSphere's own CRD is installed: nothing is asked of a name. After `lab`, which installs ours."""
    definition = yaml.safe_load((CRDS / "cluster.kubesphere.io_clusters.yaml").read_text())
    del definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["x-kubernetes-validations"]
    changed = tmp_path / "clusters.yaml"
    changed.write_text(yaml.safe_dump(definition))
    host_plane.kubectl("apply", "--server-side", "-f", str(changed))
    yield
    crds(host_plane)


@pytest.mark.usefixtures("lenient")
async def test_a_name_that_leaves_no_room_for_its_service_is_said_on_the_cluster_and_in_an_event(lab: Host) -> None:
    name = "e" * 61

    async def created() -> bool:
        try:
            return bool(await lab.create(name))
        except Invalid:  # the apiserver has not taken up the other schema yet
            return False

    async with running(lab.controller()):
        await lab.until("the name is accepted", created)
        await lab.create("edge-1")
        found = await lab.cluster(name, lambda found: said(found, "Initialized") == "False", "refused")
        assert said(found, "Initialized", "reason") == "NameTooLong"
        message = said(found, "Initialized", "message")
        assert "61 characters" in message
        assert "leaves room for 60" in message
        assert "under a shorter name" in message
        await lab.initialised("edge-1")

        async def event() -> list[str]:
            return await told(lab, name, "NameTooLong")

        (text,) = await lab.until("an Event", event)
        assert "TWR120" in text
        assert name not in await records(lab.store)
        await lab.client.delete(CLUSTERS, name)


async def test_a_members_status_that_was_edited_by_hand_is_put_right(lab: Host) -> None:
    lab.world.members["edge-1"] = up(1)
    async with running(lab.controller()):
        await lab.create("edge-1")
        await lab.initialised("edge-1")

        async def right() -> bool:
            found = await lab.get(MEMBERS, "edge-1")
            status = (found or {}).get("status") or {}
            return bool(status.get("version") == "v1.35.4" and said(found or {}, "MemberReady") == "True")

        await lab.until("its status", right)
        await lab.set_status(MEMBERS, "edge-1", version="v0", conditions=[], address="nowhere", ports=None)
        await lab.until("its status again", right)


async def test_a_write_that_is_refused_again_and_again_is_said_on_the_member_and_the_others_go_on(
    lab: Host, ill: IllApiserver
) -> None:
    """As a broken admission webhook for Services does."""

    def refuses(asked: Asked) -> int:
        return 500 if asked.method == "POST" and "/services" in asked.target and b"mc-second" in asked.body else 0

    ill.rule = refuses
    async with running(lab.controller(client=lab.new_client("ill", ill.kubeconfig))):
        await lab.create("second")
        await lab.create("first")
        await lab.initialised("first")

        async def said_so() -> bool:
            found = await lab.get(MEMBERS, "second") or {}
            return said(found, "ResourceWritable") == "False"

        await lab.until("it is said", said_so)
        found = await lab.get(MEMBERS, "second") or {}
        assert said(found, "ResourceWritable", "reason") == "KubernetesUnreachable"
        assert "the apiserver is ill" in said(found, "ResourceWritable", "message")
        assert "what follows from the cluster cannot be written" in said(found, "ResourceWritable", "message")

        async def event() -> list[str]:
            return await told(lab, "second", "KubernetesUnreachable")

        assert "the apiserver is ill" in (await lab.until("an Event", event))[0]
        ill.rule = well
        await lab.initialised("second")

        async def writable() -> bool:
            return said(await lab.get(MEMBERS, "second") or {}, "ResourceWritable") == "True"

        await lab.until("all is well", writable)


async def test_an_apiserver_that_answers_every_third_request_wrongly_loses_nothing(
    lab: Host, ill: IllApiserver
) -> None:
    """409, 410, 429 and 500 in turn, for watches, reads and writes alike, and every watch comes in pieces."""
    ills, count = itertools.cycle((409, 410, 429, 500)), itertools.count()

    def sometimes(asked: Asked) -> int:
        return next(ills) if next(count) % 3 == 2 else 0

    names = [f"edge-{number}" for number in range(4)]
    lab.world.members = {name: up(number) for number, name in enumerate(names)}
    async with running(lab.controller(client=lab.new_client("ill", ill.kubeconfig))):
        ill.rule = sometimes
        for name in names:
            await lab.create(name)

        async def ill_enough() -> bool:
            return len(ill.told) == 4 and sum(ill.told.values()) >= 12

        await lab.until("it has been ill", ill_enough, deadline=60.0)
        ill.rule = well
        for name in names:
            await lab.cluster(name, lambda found: said(found, "Initialized") == "True", "initialised after all")
            await lab.service(f"mc-{name}")
        noted = {name: data["ports"]["kubernetes"] for name, data in (await records(lab.store)).items()}
        assert sorted(noted) == names
        assert len(set(noted.values())) == len(names)
        claims = {claim.data["cluster"] for claim in (await lab.store.list(Kind.CLAIM)).items}
        assert claims == set(names)
        assert ill.pieces > 100, "watches came in pieces"


@pytest.mark.slow
async def test_an_apiserver_that_says_nothing_is_waited_out_and_what_happened_meanwhile_is_done(
    lab: Host, ill: IllApiserver
) -> None:
    """For a real minute, and under a whole server with its callers: test_silent_host.py."""
    controller = lab.controller(client=lab.new_client("ill", ill.kubeconfig), timing=QUICK)
    async with running(controller):
        await lab.create("edge-1")
        before = await lab.initialised("edge-1")
        ill.rule = silence
        await lab.until("it leads no more", lambda: asyncio.sleep(0, controller.writer is None), deadline=60.0)
        await lab.create("edge-2")
        await lab.client.delete(SERVICES, "mc-edge-1", namespace="kubesphere-system")
        ill.rule = well
        await lab.cluster("edge-2", lambda found: said(found, "Initialized") == "True", "initialised")
        service = await lab.service("mc-edge-1")
        after = await lab.cluster(
            "edge-1",
            lambda found: service["spec"]["clusterIP"] in found["spec"]["connection"]["kubernetesAPIEndpoint"],
            "the new address",
        )
        connection = before["spec"]["connection"]
        assert after["spec"]["connection"]["kubernetesAPIServerPort"] == connection["kubernetesAPIServerPort"]
        assert await lab.get(CLUSTERS, "edge-1") is not None


async def test_a_crd_that_is_deleted_takes_its_clusters_and_costs_no_member(
    lab: Host, host_plane: ControlPlane
) -> None:
    """Nobody asked for their end: it is what uninstalling KubeSphere does. Made again, they are what they were."""
    crd = "clusters.cluster.kubesphere.io"
    names = ["edge-1", "edge-2"]
    async with running(lab.controller()):
        for name in names:
            await lab.create(name)
            await lab.initialised(name)
        before = await records(lab.store)
        addresses = {name: (await lab.service(f"mc-{name}"))["spec"]["clusterIP"] for name in names}
        try:
            await asyncio.to_thread(host_plane.kubectl, "delete", "crd", crd, "--timeout=60s")
            after = await records(lab.store)
            assert sorted(after) == names
            for name in names:
                assert {**after[name], "resource": before[name]["resource"]} == before[name]
                assert (await lab.service(f"mc-{name}"))["spec"]["clusterIP"] == addresses[name]
                (text,) = await told(lab, name, "ClusterKindDeleted")
                assert "is kept and served as it was" in text
                assert "install the CRD" in text
            assert lab.revoked == []
        finally:
            crds(host_plane)

        async def made() -> bool:
            try:
                return bool(await lab.create("edge-1"))
            except NotFound:  # it is not served yet
                return False

        await lab.until("its Cluster is made again", made)
        found = await lab.initialised("edge-1")
        assert found["spec"]["connection"]["kubernetesAPIServerPort"] == before["edge-1"]["ports"]["kubernetes"]
        assert (await records(lab.store))["edge-1"]["uid"] == before["edge-1"]["uid"]
        assert "edge-2" in await records(lab.store), "the other goes on without one"
