"""Port allocation: unique, free, kept over restarts, given back."""

import asyncio
import random
import socket

import pytest
import pytest_asyncio

from daemon.faults import TowerError
from tower_server.ports import PortAllocator, PortRange, can_bind
from tower_server.records import KUBERNETES, KUBESPHERE, Claim, Cluster
from tower_server.store.base import Kind
from tower_server.store.sqlite import SqliteStore

pytestmark = pytest.mark.asyncio
HOST = "127.0.0.1"
TWINS = 10000  # so far above a port is that of the second service


def free_range(size: int) -> PortRange:
    """A run of ports that nobody holds now, nor their twins for the second service, in a part of the port space that
    the kernel does not give out by itself (it does from 32768 on, to any connection that goes out)."""
    places = list(range(20000, 32768 - TWINS - size, size))
    for first in random.sample(places, len(places)):
        if all(can_bind(HOST, port) and can_bind(HOST, port + TWINS) for port in range(first, first + size)):
            return PortRange(first, first + size - 1)
    raise AssertionError("this machine has no free run of ports")


@pytest_asyncio.fixture
async def store(tmp_path):
    store = await SqliteStore.open(tmp_path / "tower.db")
    yield store
    await store.close()


@pytest.fixture
def ports(store):
    return free_range(4)


@pytest.fixture
def allocator(store, ports):
    return PortAllocator(store, bind_address=HOST, kubernetes=ports, kubesphere_offset=TWINS)


def allocate(allocator, name, service=KUBERNETES, **more):
    return allocator.allocate(cluster=name, uid=f"uid-{name}", service=service, **more)


async def test_ports_are_given_out_from_the_low_end_and_never_twice(allocator, ports):
    given = await asyncio.gather(*(allocate(allocator, f"c{number}") for number in range(4)))
    assert sorted(given) == list(ports.ports())


async def test_a_port_that_another_process_holds_is_skipped(allocator, ports):
    with socket.create_server((HOST, ports.first)):
        assert await allocate(allocator, "a") == ports.first + 1


async def test_an_exhausted_range_says_who_holds_what(allocator, ports):
    with socket.create_server((HOST, ports.first)):
        for number in range(3):
            await allocate(allocator, f"c{number}")
        with pytest.raises(TowerError) as caught:
            await allocate(allocator, "late")
    assert caught.value.code == "TWR109"
    assert f"no port of {ports} is free for kubernetes of cluster 'late'" in caught.value.message
    assert "3 claimed by clusters, 1 held by other processes" in caught.value.message
    assert "delete clusters" in caught.value.mend


async def test_the_second_service_gets_the_twin_of_the_first_port(allocator, ports):
    await allocate(allocator, "other")
    port = await allocate(allocator, "a")
    assert await allocate(allocator, "a", KUBESPHERE, sibling=port) == port + TWINS


async def test_a_taken_twin_gives_another_port_of_its_range(allocator, ports):
    port = await allocate(allocator, "a")
    await allocate(allocator, "b", KUBESPHERE, sibling=port)
    given = await allocate(allocator, "a", KUBESPHERE, sibling=port)
    assert ports.first <= given - TWINS <= ports.last


async def test_a_released_port_is_free_again_and_only_its_owner_releases_it(allocator):
    port = await allocate(allocator, "a")
    await allocator.release([port], uid="uid-b")
    assert await allocate(allocator, "b") != port
    await allocator.release([port], uid="uid-a")
    await allocator.release([port], uid="uid-a")
    assert await allocate(allocator, "c") == port


async def test_two_servers_on_one_store_never_share_a_port(store, ports):
    one, two = (PortAllocator(store, bind_address=HOST, kubernetes=ports, kubesphere_offset=TWINS) for _ in range(2))
    given = await asyncio.gather(*(allocate(allocator, f"c{n}") for n, allocator in enumerate((one, two, one, two))))
    assert len(set(given)) == 4


async def test_a_restart_keeps_claims_releases_orphans_and_claims_what_is_missing(allocator, store, ports):
    kept = await allocate(allocator, "kept")
    orphan = await allocate(allocator, "orphan")
    clusters = [
        Cluster(name="kept", uid="uid-kept", created=0, ports={KUBERNETES: kept}),
        Cluster(name="lost", uid="uid-lost", created=0, ports={KUBERNETES: ports.last}),
    ]
    done = await allocator.adopt(clusters)
    claims = {record.name: Claim.read(record) for record in (await store.list(Kind.CLAIM)).items}
    assert claims == {
        f"port-{kept}": Claim("kept", "uid-kept", KUBERNETES),
        f"port-{ports.last}": Claim("lost", "uid-lost", KUBERNETES),
    }
    assert len(done) == 2
    assert str(orphan) in done[0]
    assert await allocator.adopt(clusters) == []


async def test_an_address_that_is_not_of_this_machine_is_named(store, ports):
    allocator = PortAllocator(store, bind_address="192.0.2.1", kubernetes=ports, kubesphere_offset=TWINS)
    with pytest.raises(TowerError, match=r"192\.0\.2\.1") as caught:
        await allocate(allocator, "a")
    assert caught.value.code == "TWR103"
