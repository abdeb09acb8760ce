"""The rules of keeping identities, on every place that keeps them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from certs.ca import Authority
from certs.errors import AuthorityError, IdentityError
from certs.identity import IdentityStore, PendingJoin
from certs.identity_files import DirectoryIdentityStore
from certs.identity_secret import SecretIdentityStore
from certs.revocation import RevocationList
from tests.certs.conftest import AT, DAY
from tests.certs.identities import enrolled


class MemorySecret:
    """A Secret as an apiserver keeps it: an update with an old resourceVersion changes nothing."""

    name = "tower/tower-agent"

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.version = 1

    async def get(self) -> tuple[Mapping[str, bytes], str]:
        await asyncio.sleep(0)
        return dict(self.data), str(self.version)

    async def update(self, data: Mapping[str, bytes], resource_version: str) -> bool:
        await asyncio.sleep(0)
        if resource_version != str(self.version):
            return False
        self.data, self.version = dict(data), self.version + 1
        return True


@pytest.fixture(params=["directory", "secret"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], IdentityStore]:
    """Opens the same place again, as another process would."""
    secret = MemorySecret()
    if request.param == "directory":
        return lambda: DirectoryIdentityStore(tmp_path / "agent")
    return lambda: SecretIdentityStore(secret)


@pytest.mark.asyncio
async def test_a_join_from_its_keys_to_its_identity(
    open_store: Callable[[], IdentityStore], authority: Authority
) -> None:
    store = open_store()
    assert await store.load("hq") is None
    assert await store.hosts() == ()
    pending = await store.pending("hq", "token-1")
    assert await open_store().pending("hq", "token-1") == pending
    identity = enrolled(authority, pending)
    assert await store.save(identity, replaces=None) == identity
    assert await open_store().load("hq") == identity
    assert await open_store().hosts() == ("hq",)
    # whoever comes second with the same token, at once or later, asks with the same keys
    assert await open_store().pending("hq", "token-1") == pending


@pytest.mark.asyncio
async def test_another_token_makes_other_keys(open_store: Callable[[], IdentityStore]) -> None:
    first = await open_store().pending("hq", "token-1")
    assert (await open_store().pending("hq", "token-2")).key_pem != first.key_pem


@pytest.mark.asyncio
async def test_a_new_join_leaves_the_working_identity_until_it_succeeds(
    open_store: Callable[[], IdentityStore], authority: Authority
) -> None:
    store = open_store()
    identity = await store.save(enrolled(authority, await store.pending("hq", "t1")), replaces=None)
    again = await store.pending("hq", "t2")
    assert await store.load("hq") == identity
    rejoined = enrolled(authority, again)
    assert await store.save(rejoined, replaces=identity) == rejoined
    assert await store.load("hq") == rejoined


@pytest.mark.asyncio
async def test_of_two_agents_the_first_writer_wins_and_the_other_adopts(
    open_store: Callable[[], IdentityStore], authority: Authority
) -> None:
    one, two = open_store(), open_store()
    keys = await asyncio.gather(one.pending("hq", "t"), two.pending("hq", "t"))
    assert keys[0] == keys[1]
    first, second = enrolled(authority, keys[0]), enrolled(authority, keys[1])
    kept = await asyncio.gather(one.save(first, replaces=None), two.save(second, replaces=None))
    assert kept[0] == kept[1]
    assert kept[0] in (first, second)
    renewed = enrolled(authority, keys[0], at=AT + DAY)
    assert await one.save(renewed, replaces=kept[0]) == renewed
    assert await two.save(enrolled(authority, keys[0], at=AT + DAY), replaces=kept[1]) == renewed


@pytest.mark.asyncio
async def test_who_renews_without_having_heard_of_a_new_trust_takes_it_from_nobody(
    open_store: Callable[[], IdentityStore], authority: Authority
) -> None:
    one, two = open_store(), open_store()
    keys = await one.pending("hq", "t")
    held = await one.save(enrolled(authority, keys), replaces=None)
    later = authority.with_next(at=AT + DAY)
    believing = replace(held, trust_number=later.number, trust_pem=later.bundle.to_pem())
    assert await one.save(believing, replaces=held) == believing
    renewed = enrolled(authority, keys, at=AT + DAY)
    kept = await two.save(renewed, replaces=held)
    assert kept == replace(renewed, trust_number=later.number, trust_pem=later.bundle.to_pem())
    assert await one.load("hq") == kept
    anew = enrolled(Authority.create("hq", at=AT), PendingJoin.create("hq", "another"))
    assert await two.save(anew, replaces=kept) == anew


@pytest.mark.asyncio
async def test_a_list_of_an_identity_that_was_removed_does_not_outlive_the_next_join(
    open_store: Callable[[], IdentityStore], authority: Authority
) -> None:
    """Its number says nothing about the lists of a host that has begun anew, and its issuer is none of that host's."""
    store = open_store()
    old = RevocationList(9, "hq", AT).sign(authority.revocation_signer())
    await store.save_revocations("hq", old)
    begun_anew = Authority.create("hq", at=AT)
    await store.save(enrolled(begun_anew, await store.pending("hq", "t")), replaces=None)
    assert await store.revocations("hq") is None
    new = RevocationList(1, "hq", AT).sign(begun_anew.revocation_signer())
    await store.save_revocations("hq", new)
    assert await store.revocations("hq") == new


@pytest.mark.asyncio
async def test_hosts_do_not_disturb_each_other(open_store: Callable[[], IdentityStore], authority: Authority) -> None:
    elsewhere = Authority.create("elsewhere", at=AT)
    store = open_store()
    for each in (authority, elsewhere):
        await store.save(enrolled(each, await store.pending(each.host, "t")), replaces=None)
    await store.save_revocations("elsewhere", b"x.{}")
    assert await store.hosts() == ("elsewhere", "hq")
    await store.forget("elsewhere")
    assert await store.hosts() == ("hq",)
    assert await store.load("hq") is not None
    assert await store.revocations("elsewhere") is None


@pytest.mark.asyncio
async def test_a_lower_revocation_list_never_replaces_a_higher_one(
    open_store: Callable[[], IdentityStore], authority: Authority
) -> None:
    low, high = (RevocationList(n, "hq", AT).sign(authority.revocation_signer()) for n in (3, 4))
    store = open_store()
    for encoded in (low, high, low):
        await store.save_revocations("hq", encoded)
    assert await open_store().revocations("hq") == high


@pytest.mark.asyncio
async def test_parts_that_do_not_belong_together_are_not_kept(
    open_store: Callable[[], IdentityStore], authority: Authority
) -> None:
    identity = enrolled(authority, PendingJoin.create("hq", "t"))
    other = enrolled(authority, PendingJoin.create("hq", "t"))
    for mixed, says in (
        (replace(identity, key_pem=other.key_pem), "not that of the identity's certificate"),
        (replace(identity, serving_key_pem=other.serving_key_pem), "not that of the serving certificate"),
        (replace(identity, cluster="edge-2"), "a1 of edge-1@hq"),
    ):
        with pytest.raises(AuthorityError, match=says):
            await open_store().save(mixed, replaces=None)
    assert await open_store().load("hq") is None


@pytest.mark.asyncio
async def test_a_host_is_a_label_before_it_is_a_place(open_store: Callable[[], IdentityStore]) -> None:
    for bad in ("../evil", "a.b", ""):
        with pytest.raises(IdentityError, match=r"not a DNS label"):
            await open_store().pending(bad, "t")


def test_an_identity_shows_no_key(authority: Authority) -> None:
    pending = PendingJoin.create("hq", "t")
    for shown in (repr(pending), repr(enrolled(authority, pending))):
        assert "PRIVATE" not in shown
