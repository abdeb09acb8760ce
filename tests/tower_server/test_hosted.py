"""What a server has only where its records lie in a cluster; with one: tests/kubernetes, replicas/."""

import pytest

from tests.tower_server.kit import admin, running
from tower_server.config import ServerConfig
from tower_server.hosted import client_of, host_secret
from tower_server.store.sqlite import SqliteStore

pytestmark = pytest.mark.asyncio


async def test_without_a_host_cluster_nothing_of_it_is_made(tmp_path):
    async with running(tmp_path) as server:
        parts = server.server._parts
        assert (parts.replicas, parts.operators, parts.host_secret, parts.services.host) == (None, None, None, None)
        assert (await admin(server, "GET", "/v1/info")).status == 200


async def test_the_secret_of_kubesphere_is_looked_for_in_a_host_cluster_only(tmp_path):
    store = await SqliteStore.open(tmp_path / "tower.db")
    assert client_of(store) is None
    assert host_secret(ServerConfig(), client_of(store)) is None
    await store.close()
