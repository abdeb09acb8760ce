"""The revocation list: its number rises with every change and outlives the process."""

import asyncio
import time

import pytest
import pytest_asyncio

from certs.ca import Authority
from certs.errors import Untrusted
from certs.keys import generate_key
from certs.peers import rfc3339
from certs.revocation import ALL_AGENTS, verify_list
from daemon.faults import TowerError
from tower_server.revocations import RECORD, Revocations
from tower_server.store.base import Kind
from tower_server.store.sqlite import SqliteStore

pytestmark = pytest.mark.asyncio
NOW = time.time()
FIRST = int(NOW * 1000)
AUTHORITY = Authority.create("hq", at=NOW)


@pytest_asyncio.fixture
async def store(tmp_path):
    store = await SqliteStore.open(tmp_path / "tower.db")
    yield store
    await store.close()


def load(store):
    return Revocations.load(store, AUTHORITY, at=NOW)


async def test_changes_are_kept_and_numbered(store):
    held = await load(store)
    await held.revoke_user("alice", at=NOW)
    await held.revoke_agent("edge-1", "a1", at=NOW)
    await held.revoke_serial(0x1F, expires=NOW + 60, at=NOW)
    again = await load(store)
    assert again.current == held.current
    assert again.current.number == FIRST + 2
    assert again.current.revokes_user(serial=1, user="alice", issued_at=NOW - 1)
    assert again.current.revokes_agent(serial=1, cluster="edge-1", agent="a1", issued_at=NOW - 1)
    assert not again.current.revokes_agent(serial=1, cluster="edge-1", agent="a1", issued_at=NOW + 2)


async def test_a_clock_that_was_set_back_gives_nothing_back_that_was_taken(store):
    held = await load(store)
    for at in (NOW, NOW - 3600):
        await held.revoke_user("alice", at=at)
        await held.revoke_agent("edge-1", "a1", at=at)
        await held.revoke_serial(0x1F, expires=at + 60, at=at)
    assert held.current.users == {"alice": int(NOW) + 1}  # what was issued since bears at least that
    assert held.current.agents == {("edge-1", "a1"): NOW}
    assert held.current.serials == {0x1F: NOW + 60}


async def test_what_is_issued_after_a_clock_ran_ahead_is_good_or_refused_and_never_dead_on_arrival(store):
    held = await load(store)
    await held.revoke_user("alice", at=NOW + 60)  # by a server whose clock is a minute ahead
    await held.revoke_agent("edge-1", ALL_AGENTS, at=NOW + 60)  # as its deletion does
    for upto, at in (
        (held.current.users["alice"], held.time_for_caller("alice", at=NOW)),
        (held.current.agents["edge-1", ALL_AGENTS], held.time_for_agent("edge-1", "a1", at=NOW)),
    ):
        assert upto < int(at) <= NOW + 61
    public_key = generate_key().public_key()
    issued = AUTHORITY.issue_client("alice", public_key=public_key, at=held.time_for_caller("alice", at=NOW))
    AUTHORITY.bundle.verify_client(issued.chain_der, NOW, revocations=held.current)
    await held.revoke_user("alice", at=NOW)  # again, by the clock that is right: what was issued since goes too
    with pytest.raises(Untrusted, match="the certificate of alice was revoked"):
        AUTHORITY.bundle.verify_client(issued.chain_der, NOW, revocations=held.current)
    assert held.time_for_caller("bob", at=NOW) == held.time_for_agent("edge-2", "a1", at=NOW) == NOW
    assert held.time_for_caller("alice", at=NOW + 63) == NOW + 63
    await held.revoke_user("alice", at=NOW + 86400)
    await held.revoke_agent("edge-1", "a1", at=NOW + 86400)
    for ask in (lambda: held.time_for_caller("alice", at=NOW), lambda: held.time_for_agent("edge-1", "a1", at=NOW)):
        with pytest.raises(TowerError, match=f"are revoked until {rfc3339(NOW + 86400)}") as refused:
            ask()
        assert refused.value.code == "TWR505"
        assert "correct this server's clock" in refused.value.mend


async def test_what_agents_get_is_signed_and_names_no_agents(store):
    held = await load(store)
    await held.revoke_agent("edge-1", "a1", at=NOW)
    sent = verify_list(held.signed, issuers=AUTHORITY.bundle.revocation_keys(), host="hq")
    assert (sent.number, sent.agents) == (FIRST, {})


async def test_many_changes_at_once_are_all_kept(store):
    one, two = await load(store), await load(store)
    await asyncio.gather(*((one, two)[n % 2].revoke_user(f"u{n}", at=NOW) for n in range(10)))
    assert len((await load(store)).current.users) == 10
    assert FIRST < (await load(store)).current.number < FIRST + 10


async def test_what_is_asked_for_while_the_list_is_written_is_written_together(store):
    revocations = await load(store)
    clusters = [f"edge-{number}" for number in range(20)]
    await asyncio.gather(*(revocations.revoke_agent(name, ALL_AGENTS, at=NOW) for name in clusters))
    written = await load(store)
    assert sorted(cluster for cluster, _ in written.current.agents) == sorted(clusters)
    assert written.current.number == FIRST + 1, "the first alone, then all that had come meanwhile"


async def test_whoever_subscribed_hears_of_it_after_it_is_written(store):
    held = await load(store)
    heard = []
    held.subscribe(lambda: heard.append(held.current.number))
    await held.revoke_user("alice", at=NOW)
    assert heard == [FIRST]


@pytest.mark.parametrize("noticed", [True, False], ids=["at the next look", "by a revocation"])
async def test_a_server_forgets_nothing_where_its_record_is_deleted(store, noticed, capsys):
    held = await load(store)
    await held.revoke_user("alice", at=NOW)
    await store.delete(Kind.REVOCATION, RECORD)
    if noticed:
        assert await held.follow() is None
        assert (await load(store)).current == held.current
        said = capsys.readouterr().out
        assert said.count("revocations-put-back") == 1
        assert "TWR506" in said
    await held.revoke_user("bob", at=NOW + 1)
    assert (await load(store)).current.users == {"alice": NOW, "bob": NOW + 1}
    assert await held.follow() is None
    assert "revocations-put-back" not in capsys.readouterr().out


async def test_servers_that_meet_where_the_record_was_deleted_keep_it_once(store):
    one, two = await load(store), await load(store)
    await one.revoke_user("alice", at=NOW)
    await two.follow()
    await store.delete(Kind.REVOCATION, RECORD)
    await asyncio.gather(one.follow(), two.follow(), one.revoke_user("bob", at=NOW + 1))
    await asyncio.gather(one.follow(), two.follow())
    assert one.current == two.current == (await load(store)).current
    assert set(one.current.users) == {"alice", "bob"}


async def test_an_earlier_record_that_was_put_back_gives_nothing_back_that_was_taken(store):
    """As a restore of the host's etcd under servers that run does."""
    held = await load(store)
    await held.revoke_user("alice", at=NOW)
    earlier = await store.get(Kind.REVOCATION, RECORD)
    await held.revoke_user("bob", at=NOW + 1)

    async def put_back():
        now = await store.get(Kind.REVOCATION, RECORD)
        await store.update(Kind.REVOCATION, RECORD, earlier.data, expect=now.version)

    await put_back()
    assert await held.follow() is None
    assert (await load(store)).current == held.current
    await put_back()
    await held.revoke_user("carol", at=NOW + 2)
    assert set((await load(store)).current.users) == {"alice", "bob", "carol"}


async def test_what_could_not_be_written_again_is_at_the_next_look(store, monkeypatch):
    held = await load(store)
    await held.revoke_user("alice", at=NOW)
    earlier = await store.get(Kind.REVOCATION, RECORD)
    await held.revoke_user("bob", at=NOW + 1)
    now = await store.get(Kind.REVOCATION, RECORD)
    await store.update(Kind.REVOCATION, RECORD, earlier.data, expect=now.version)

    async def away(*_args, **_more):
        raise TowerError("TWR114", "the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "update", away)
        with pytest.raises(TowerError, match="the store is away"):
            await held.follow()
    await held.follow()
    assert (await load(store)).current == held.current


async def test_a_list_too_long_for_agents_is_refused_before_it_is_stored(store):
    held = await load(store)
    many = {f"{'x' * 50}{number:09d}": NOW for number in range(4000)}
    object.__setattr__(held.current, "users", many)
    with pytest.raises(TowerError) as caught:
        await held.revoke_user("one more", at=NOW)
    assert caught.value.code == "TWR506"
    assert (await load(store)).current.number == 0


async def test_what_no_living_certificate_can_match_is_dropped(store):
    held = await load(store)
    await held.revoke_serial(1, expires=NOW - 1, at=NOW - 10)
    await held.revoke_user("alice", at=NOW)
    assert set(held.current.serials) == set()
