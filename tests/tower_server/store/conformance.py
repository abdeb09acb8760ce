"""What every store must do, whichever implementation: subclass `StoreConformance` and give it a `store` fixture."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from tower_server.store.base import (
    MAX_RECORD_BYTES,
    ChangeType,
    Conflict,
    Expired,
    Invalid,
    Kind,
    NotFound,
    Store,
    Version,
    later,
)

PATIENCE = 20.0


async def take(store: Store, kind: Kind, since: Version, count: int) -> list:
    changes = []
    async with asyncio.timeout(PATIENCE), aclosing(store.watch(kind, since=since)) as watch:
        async for change in watch:
            changes.append(change)
            if len(changes) == count:
                break
    return changes


@pytest.mark.asyncio
class StoreConformance:
    async def test_what_was_created_is_read_back(self, store: Store):
        data = {"port": 6012, "text": "ümläut", "deep": {"list": [1, None, True, 2.5]}}
        made = await store.create(Kind.CLUSTER, "edge-1", data)
        read = await store.get(Kind.CLUSTER, "edge-1")
        assert read == made
        assert read.data == data

    async def test_a_second_create_of_a_name_is_a_conflict_and_changes_nothing(self, store: Store):
        made = await store.create(Kind.CLAIM, "port-6012", {"cluster": "a"})
        with pytest.raises(Conflict, match="port-6012"):
            await store.create(Kind.CLAIM, "port-6012", {"cluster": "b"})
        assert await store.get(Kind.CLAIM, "port-6012") == made

    async def test_of_many_creators_at_once_one_wins(self, store: Store):
        async def attempt(number: int) -> bool:
            try:
                await store.create(Kind.CLAIM, "port-6000", {"by": number})
            except Conflict:
                return False
            return True

        results = await asyncio.gather(*(attempt(number) for number in range(50)))
        assert results.count(True) == 1
        winner = (await store.get(Kind.CLAIM, "port-6000")).data["by"]
        assert results[winner]

    async def test_a_name_is_free_in_another_kind(self, store: Store):
        await store.create(Kind.CLUSTER, "x", {})
        await store.create(Kind.TOKEN, "x", {})

    async def test_update_needs_the_version_that_was_read(self, store: Store):
        first = await store.create(Kind.TOKEN, "t", {"uses": 1})
        second = await store.update(Kind.TOKEN, "t", {"uses": 0}, expect=first.version)
        assert later(second.version, first.version)
        assert not later(first.version, second.version)
        with pytest.raises(Conflict):
            await store.update(Kind.TOKEN, "t", {"uses": 5}, expect=first.version)
        assert (await store.get(Kind.TOKEN, "t")).data == {"uses": 0}

    async def test_of_many_updates_of_one_version_one_wins(self, store: Store):
        first = await store.create(Kind.TOKEN, "t", {"by": None})

        async def attempt(number: int) -> bool:
            try:
                await store.update(Kind.TOKEN, "t", {"by": number}, expect=first.version)
            except Conflict:
                return False
            return True

        assert sum(await asyncio.gather(*(attempt(number) for number in range(50)))) == 1

    async def test_what_is_not_there_is_not_found(self, store: Store):
        version = (await store.create(Kind.AGENT, "gone", {})).version
        await store.delete(Kind.AGENT, "gone")
        with pytest.raises(NotFound, match="gone"):
            await store.get(Kind.AGENT, "gone")
        with pytest.raises(NotFound):
            await store.update(Kind.AGENT, "gone", {}, expect=version)
        with pytest.raises(NotFound):
            await store.delete(Kind.AGENT, "gone")

    async def test_delete_with_an_older_version_is_a_conflict(self, store: Store):
        first = await store.create(Kind.AGENT, "a", {})
        second = await store.update(Kind.AGENT, "a", {"n": 1}, expect=first.version)
        with pytest.raises(Conflict):
            await store.delete(Kind.AGENT, "a", expect=first.version)
        await store.delete(Kind.AGENT, "a", expect=second.version)

    async def test_a_recreated_record_has_another_version(self, store: Store):
        first = await store.create(Kind.AGENT, "a", {})
        await store.delete(Kind.AGENT, "a")
        again = await store.create(Kind.AGENT, "a", {})
        assert later(again.version, first.version)
        with pytest.raises(Conflict):
            await store.update(Kind.AGENT, "a", {"n": 1}, expect=first.version)

    async def test_list_gives_one_kind_ordered_and_by_prefix(self, store: Store):
        for name in ("port-6001", "port-16000", "port-6000", "other"):
            await store.create(Kind.CLAIM, name, {"name": name})
        await store.create(Kind.CLUSTER, "port-1", {})
        names = [record.name for record in (await store.list(Kind.CLAIM)).items]
        assert names == ["other", "port-16000", "port-6000", "port-6001"]
        assert [r.name for r in (await store.list(Kind.CLAIM, prefix="port-6")).items] == ["port-6000", "port-6001"]

    @pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a/b", "../a", "a" * 254, "a\n"])
    async def test_names_that_no_kubernetes_object_could_have_are_refused(self, store: Store, name):
        with pytest.raises(Invalid):
            await store.create(Kind.CLUSTER, name, {})

    async def test_an_oversized_record_is_refused(self, store: Store):
        with pytest.raises(Invalid, match="at most"):
            await store.create(Kind.CLUSTER, "big", {"x": "y" * MAX_RECORD_BYTES})

    async def test_watch_tells_every_change_after_the_version_in_order(self, store: Store):
        await store.create(Kind.CLUSTER, "before", {})
        since = (await store.list(Kind.CLUSTER)).version
        made = await store.create(Kind.CLUSTER, "a", {"n": 1})
        await store.create(Kind.TOKEN, "other-kind", {})
        changed = await store.update(Kind.CLUSTER, "a", {"n": 2}, expect=made.version)
        await store.delete(Kind.CLUSTER, "a")
        changes = await take(store, Kind.CLUSTER, since, 3)
        assert [change.type for change in changes] == [ChangeType.CREATED, ChangeType.UPDATED, ChangeType.DELETED]
        assert [change.record for change in changes[:2]] == [made, changed]
        assert changes[2].record.data == {"n": 2}
        assert later(changes[2].record.version, changed.version)

    async def test_watch_goes_on_from_the_version_of_a_change(self, store: Store):
        since = (await store.list(Kind.CLUSTER)).version
        for number in range(4):
            await store.create(Kind.CLUSTER, f"c{number}", {})
        first = await take(store, Kind.CLUSTER, since, 2)
        rest = await take(store, Kind.CLUSTER, first[-1].record.version, 2)
        assert [change.record.name for change in first + rest] == ["c0", "c1", "c2", "c3"]

    async def test_watch_waits_for_changes_to_come(self, store: Store):
        since = (await store.list(Kind.CLUSTER)).version
        waiting = asyncio.ensure_future(take(store, Kind.CLUSTER, since, 1))
        other = asyncio.ensure_future(take(store, Kind.CLUSTER, since, 1))
        await asyncio.sleep(0)
        await store.create(Kind.CLUSTER, "late", {})
        for task in (waiting, other):
            assert (await task)[0].record.name == "late"

    async def test_watch_from_a_version_never_given_out_is_expired(self, store: Store):
        with pytest.raises(Expired):
            await take(store, Kind.CLUSTER, Version("999999999"), 1)
        with pytest.raises(Expired):
            await take(store, Kind.CLUSTER, Version("not-a-version"), 1)

    async def test_close_ends_watches_and_is_idempotent(self, store: Store):
        since = (await store.list(Kind.CLUSTER)).version
        waiting = asyncio.ensure_future(take(store, Kind.CLUSTER, since, 1))
        await asyncio.sleep(0)
        await store.close()
        await store.close()
        assert await waiting == []
