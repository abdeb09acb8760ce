from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from certs import identity_secret
from certs.ca import Authority
from certs.errors import IdentityError
from certs.identity import PendingJoin
from certs.identity_secret import MAX_ATTEMPTS, SecretIdentityStore
from tests.certs.identities import enrolled
from tests.certs.test_identity import MemorySecret

pytestmark = pytest.mark.asyncio


async def test_entries_lie_under_keys_that_a_secret_allows_and_foreign_ones_stay(authority: Authority) -> None:
    secret = MemorySecret()
    secret.data = {"note": b"by hand", "Not.A-Host": b"x"}
    store = SecretIdentityStore(secret)
    identity = enrolled(authority, await store.pending("hq", "t"))
    assert set(secret.data) == {"note", "Not.A-Host", "hq.pending.json"}
    await store.save(identity, replaces=None)
    assert set(secret.data) == {"note", "Not.A-Host", "hq.identity.json", "hq.pending.json"}
    await store.forget("hq")
    assert secret.data == {"note": b"by hand", "Not.A-Host": b"x"}


async def test_reading_writes_nothing(authority: Authority) -> None:
    secret = MemorySecret()
    store = SecretIdentityStore(secret)
    await store.pending("hq", "t")
    before = secret.version
    await store.pending("hq", "t")
    await store.load("hq")
    await store.hosts()
    assert secret.version == before


async def test_a_damaged_entry_names_secret_and_key() -> None:
    secret = MemorySecret()
    secret.data = {"hq.identity.json": b"{"}
    with pytest.raises(IdentityError, match=r"key hq\.identity\.json of Secret tower/tower-agent cannot be used"):
        await SecretIdentityStore(secret).load("hq")


async def test_endless_conflicts_end() -> None:
    class Contested(MemorySecret):
        updates = 0

        async def update(self, data: Mapping[str, bytes], resource_version: str) -> bool:
            self.updates += 1
            return False

    secret = Contested()
    with pytest.raises(IdentityError, match=r"changed by others at each of 10 attempts.*who else writes it"):
        await SecretIdentityStore(secret).pending("hq", "t")
    assert secret.updates == MAX_ATTEMPTS


async def test_a_silent_apiserver_ends_by_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(MemorySecret):
        async def get(self) -> tuple[Mapping[str, bytes], str]:
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr(identity_secret, "SECRET_DEADLINE", 0.05)
    with pytest.raises(IdentityError, match=r"within 0.05 s.*apiserver"):
        await SecretIdentityStore(Silent()).load("hq")


async def test_many_agents_at_once_end_with_one_identity(authority: Authority) -> None:
    secret = MemorySecret()

    async def join() -> object:
        store = SecretIdentityStore(secret)
        pending = await store.pending("hq", "t")
        assert isinstance(pending, PendingJoin)
        return await store.save(enrolled(authority, pending), replaces=None)

    kept = await asyncio.gather(*(join() for _ in range(5)))
    assert all(each == kept[0] for each in kept)
