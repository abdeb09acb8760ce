"""The Leases by which servers find each other, on a real apiserver."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from daemon.kube.access import Access
from daemon.kube.client import Client
from tests.lab.controlplane import ControlPlane
from tests.waiting import PATIENCE, until
from tower_server.replicas import directory as module
from tower_server.replicas.directory import ADDRESS, CALLERS, LABEL, Directory, Peer, read

pytestmark = [pytest.mark.asyncio, pytest.mark.cluster]
NAMESPACE = "tower-directory"


def peer(name: str, instance: str = "1", host: str = "10.1.0.1") -> Peer:
    return Peer(name, instance, host, 8444, host)


@pytest_asyncio.fixture
async def client(host_plane: ControlPlane) -> AsyncIterator[Client]:
    host_plane.kubectl("create", "namespace", NAMESPACE, check=False)
    made = Client(Access.find(host_plane.admin_kubeconfig), user_agent="test")
    yield made
    made.close()
    host_plane.kubectl("delete", "leases", "-n", NAMESPACE, "--all")


@asynccontextmanager
async def standing(client: Client, me: Peer) -> AsyncIterator[Directory]:
    """A server that publishes itself and follows the others; orderly stopped at the end."""
    directory = Directory(client, me, namespace=NAMESPACE)
    tasks = [asyncio.create_task(directory.publish()), asyncio.create_task(directory.follow())]
    try:
        yield directory
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def test_servers_find_each_other_and_one_that_stops_is_gone(client: Client):
    one, two = peer("tower-1"), peer("tower-2", host="fd00::2")
    async with standing(client, one) as first:
        async with standing(client, two) as second:
            await until(lambda: first.peers() == [two] and second.peers() == [one])
        await until(lambda: first.peers() == [])


async def test_a_server_that_was_started_anew_is_another_instance(client: Client):
    async with standing(client, peer("tower-1")) as first:
        killed = Directory(client, peer("tower-2", "old"), namespace=NAMESPACE)
        await killed._write()  # and nothing more: it died
        await until(lambda: [each.instance for each in first.peers()] == ["old"])
        async with standing(client, peer("tower-2", "new", "10.1.0.9")):
            await until(lambda: first.peers() == [peer("tower-2", "new", "10.1.0.9")])


async def test_a_lease_that_nobody_renews_is_stale_and_then_taken_away(client: Client, monkeypatch, host_plane):
    monkeypatch.setattr(module, "WRITTEN_EVERY", 0.2)
    async with standing(client, peer("tower-1")) as first:
        await Directory(client, peer("tower-2"), namespace=NAMESPACE)._write()
        await until(lambda: first.peers())
        monkeypatch.setattr(module, "STALE_AFTER", 1.0)
        await until(lambda: first.peers() == [])
        monkeypatch.setattr(module, "GONE_AFTER", 4.0)

        def left() -> str:
            return host_plane.kubectl("get", "leases", "-n", NAMESPACE, "-o", "name").text

        async with asyncio.timeout(PATIENCE):
            while "tower-replica-tower-2" in await asyncio.to_thread(left):
                await asyncio.sleep(0.05)
        assert "tower-replica-tower-1" in left(), "one that is renewed stays"


async def test_nobody_is_stale_while_the_leases_cannot_be_followed(client: Client, monkeypatch):
    async with standing(client, peer("tower-1")) as first:
        await Directory(client, peer("tower-2"), namespace=NAMESPACE)._write()
        await until(lambda: first.peers())
        first._reflector.fault = module.TowerError("TWR114", "the apiserver is away")
        monkeypatch.setattr(module, "STALE_AFTER", 0.0)
        assert first.peers() == [peer("tower-2")]
        first._reflector.fault = None
        assert first.peers() == []


async def test_what_others_put_on_the_lease_stays(client: Client, host_plane: ControlPlane):
    directory = Directory(client, peer("tower-1"), namespace=NAMESPACE)
    await directory._write()
    annotate = ("annotate", "lease", "tower-replica-tower-1", "-n", NAMESPACE, "mine=kept")
    await asyncio.to_thread(host_plane.kubectl, *annotate)
    await directory._write()
    shown = await asyncio.to_thread(
        host_plane.kubectl, "get", "lease", "tower-replica-tower-1", "-n", NAMESPACE, "-o", "json"
    )
    found = json.loads(shown.stdout)
    assert found["metadata"]["annotations"]["mine"] == "kept"
    assert found["metadata"]["labels"][LABEL] == "server"


@pytest.mark.parametrize(
    "lease",
    [
        {},
        {"metadata": {"name": "tower-replica-a"}},
        {
            "metadata": {"name": "tower-replica-a", "annotations": {ADDRESS: "nonsense"}},
            "spec": {"holderIdentity": "1"},
        },
        {"metadata": {"name": "tower-replica-a", "annotations": {ADDRESS: ":1"}}, "spec": {"holderIdentity": "1"}},
        {"metadata": {"name": "another", "annotations": {ADDRESS: "h:1"}}, "spec": {"holderIdentity": "1"}},
        {"metadata": {"name": "tower-replica-a", "annotations": {ADDRESS: "h:1"}}, "spec": {}},
        {"metadata": {"name": "tower-replica-a", "annotations": {ADDRESS: "h:1", CALLERS: 3}}, "spec": {}},
    ],
)
async def test_a_lease_that_names_no_server_is_none(lease):
    assert read(lease) is None
