"""The CA in the store: made once, read ever after, refused when it is not the one that is meant."""

import asyncio
import re
import time

import pytest

from daemon.faults import TowerError
from tower_server.authority import RECORD, load_or_create, put_back
from tower_server.store.base import Kind, NotFound
from tower_server.store.sqlite import SqliteStore

pytestmark = pytest.mark.asyncio


async def load(store, host=""):
    return await load_or_create(store, host=host, fallback_host="machine", at=time.time())


async def test_it_is_made_at_the_first_start_and_read_at_every_other(tmp_path):
    store = await SqliteStore.open(tmp_path / "tower.db")
    first, made = await load(store)
    again, remade = await load(store)
    assert (made, remade, first.host) == (True, False, "machine")
    assert first.bundle.fingerprint == again.bundle.fingerprint
    await store.close()


async def test_of_several_first_starts_all_take_the_same(tmp_path):
    store = await SqliteStore.open(tmp_path / "tower.db")
    results = await asyncio.gather(*(load(store) for _ in range(8)))
    assert len({authority.bundle.fingerprint for authority, _ in results}) == 1
    assert sum(made for _, made in results) == 1
    await store.close()


async def test_another_configured_name_is_refused_not_followed(tmp_path):
    store = await SqliteStore.open(tmp_path / "tower.db")
    await load(store, "hq")
    with pytest.raises(TowerError) as caught:
        await load(store, "other")
    assert caught.value.code == "TWR501"
    assert "'hq'" in caught.value.message
    assert "host: hq" in caught.value.mend
    await store.close()


@pytest.mark.parametrize(
    "data", [{}, {"pem": ""}, {"pem": "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----"}]
)
async def test_a_damaged_record_says_what_to_restore(tmp_path, data):
    store = await SqliteStore.open(tmp_path / "tower.db")
    await store.create(Kind.SECRET, RECORD, data)
    with pytest.raises(TowerError) as caught:
        await load(store)
    assert caught.value.code == "TWR501"
    assert "restore" in caught.value.mend
    await store.close()


async def test_no_ca_is_made_beside_agents_of_another(tmp_path):
    """Its record alone was deleted: a new one would have locked every member out, and said that all is well."""
    store = await SqliteStore.open(tmp_path / "tower.db")
    authority, _ = await load(store)
    await store.create(Kind.AGENT, "edge-1.a", {"name": "a"})
    await store.delete(Kind.SECRET, RECORD)
    with pytest.raises(TowerError) as caught:
        await load(store)
    assert caught.value.code == "TWR501"
    assert "1 agent and no tower CA" in caught.value.message
    assert "tower-secret-authority" in caught.value.mend
    with pytest.raises(NotFound):
        await store.get(Kind.SECRET, RECORD)
    assert await put_back(store, authority)
    assert not await put_back(store, authority), "another server was first"
    assert (await load(store))[0].bundle.fingerprint == authority.bundle.fingerprint
    await store.close()


async def test_a_stored_ca_of_before_gets_what_it_lacks_once_and_keeps_its_root(tmp_path):
    store = await SqliteStore.open(tmp_path / "tower.db")
    first, _ = await load(store)
    record = await store.get(Kind.SECRET, RECORD)
    blocks = re.findall(r"-----BEGIN .+?-----END [A-Z ]+-----\n", record.data["pem"], re.DOTALL)
    old = {**record.data, "pem": "".join(blocks[:-2])}  # the issuer of replicas and its key
    await store.update(Kind.SECRET, RECORD, old, expect=record.version)
    loaded = [authority for authority, made in await asyncio.gather(*(load(store) for _ in range(8))) if not made]
    assert len({each.to_pem() for each in loaded}) == 1, "all servers have the same issuer"
    assert loaded[0].bundle.to_pem() == first.bundle.to_pem()
    assert loaded[0].complete
    await store.close()
