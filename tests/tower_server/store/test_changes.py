"""The log of changes: complete for who keeps up, a clear end for who does not."""

import asyncio
from contextlib import aclosing

import pytest

from tower_server.store.base import Change, ChangeType, Expired, Kind, Record, Version
from tower_server.store.changes import ChangeLog

pytestmark = pytest.mark.asyncio


def change(position, kind=Kind.CLUSTER):
    return Change(ChangeType.CREATED, Record(kind, f"r{position}", Version(str(position)), {}))


async def test_a_slow_reader_keeps_what_it_has_in_hand_and_then_hears_that_it_is_too_slow():
    log = ChangeLog(0, size=3)
    for position in (1, 2, 3):
        log.append(position, change(position))
    async with aclosing(log.follow(Kind.CLUSTER, 0)) as changes:
        seen = [(await anext(changes)).record.name]
        for position in range(4, 9):
            log.append(position, change(position))
        seen += [(await anext(changes)).record.name for _ in range(2)]
        assert seen == ["r1", "r2", "r3"]
        with pytest.raises(Expired):
            await anext(changes)


async def test_other_kinds_pass_by_without_stopping_the_watch():
    log = ChangeLog(0, size=10)
    async with asyncio.timeout(30), aclosing(log.follow(Kind.CLUSTER, 0)) as changes:
        waiting = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        log.append(1, change(1, Kind.TOKEN))
        await asyncio.sleep(0)
        log.append(2, change(2))
        assert (await waiting).record.name == "r2"


async def test_a_watch_that_is_left_holds_nothing():
    log = ChangeLog(0)
    changes = log.follow(Kind.CLUSTER, 0)
    waiting = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not log._waiters
