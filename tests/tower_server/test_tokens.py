"""Enrolment tokens as records: bounds, tidying, states."""

import time

import pytest
import pytest_asyncio

from certs.token import parse_token
from daemon.faults import TowerError
from tower_server.records import Cluster, Enrolled, Token
from tower_server.store.base import Kind
from tower_server.store.sqlite import SqliteStore
from tower_server.tokens import Tokens, token_state

pytestmark = pytest.mark.asyncio
CLUSTER = Cluster("edge-1", "uid-1", 1.0)


@pytest_asyncio.fixture
async def store(tmp_path):
    store = await SqliteStore.open(tmp_path / "tower.db")
    await store.create(Kind.CLUSTER, "edge-1", CLUSTER.data())
    yield store
    await store.close()


@pytest.fixture
def tokens(store):
    return Tokens(store, url=lambda: "wss://tower.example.com", fingerprint=lambda: "a" * 64, lifetime=3600.0, uses=1)


def no_issue(token):
    raise AssertionError(f"nothing is issued for {token.id}")


@pytest.mark.parametrize("bounds", [{"ttl": 0.0}, {"ttl": 1e9}, {"uses": 0}, {"uses": 10_000}])
async def test_bounds_that_make_no_sense_are_refused(tokens, bounds):
    with pytest.raises(TowerError) as caught:
        await tokens.create(CLUSTER, **bounds)
    assert caught.value.code == "TWR605"


async def test_the_states_of_a_token():
    token = Token("i", "edge-1", "u", "h", created=0.0, expires=100.0, uses=1)
    used = Token(**{**token.data(), "keys": {"k": Enrolled("a", 1.0, "s", "c", "d", 1.0, 1.0)}})
    revoked = Token(**{**token.data(), "revoked": 5.0})
    assert [token_state(each, 50.0) for each in (token, used, revoked)] == ["Valid", "Used", "Revoked"]
    assert token_state(token, 100.0) == "Expired"


async def test_tidying_takes_what_is_long_expired_so_that_who_comes_a_little_late_hears_why(tokens, store):
    kept, late, old = [await tokens.create(CLUSTER) for _ in range(3)]
    for made, ago in ((late, 3600), (old, 2 * 86400)):
        record = await store.get(Kind.TOKEN, made.token.id)
        expired = {**record.data, "expires": time.time() - ago}
        await store.update(Kind.TOKEN, made.token.id, expired, expect=record.version)
    await tokens.tidy()
    assert {token.id for token in await tokens.list()} == {kept.token.id, late.token.id}
    with pytest.raises(TowerError) as caught:
        await tokens.redeem(late.token.id, parse_token(late.text).secret, "key", issue=no_issue)
    assert caught.value.code == "TWR205"


async def test_revoking_twice_is_fine_and_an_unknown_one_is_named(tokens):
    made = await tokens.create(CLUSTER)
    first = await tokens.revoke(made.token.id)
    assert (await tokens.revoke(made.token.id)).revoked == first.revoked
    with pytest.raises(TowerError) as caught:
        await tokens.revoke("nothing")
    assert caught.value.code == "TWR603"


async def test_they_are_listed_by_cluster_the_oldest_first(tokens):
    made = [(await tokens.create(Cluster(name, name, 1.0))).token.id for name in ("b", "a", "b", "a")]
    assert [token.id for token in await tokens.list()] == [made[1], made[3], made[0], made[2]]
    assert [token.id for token in await tokens.list("b")] == [made[0], made[2]]
