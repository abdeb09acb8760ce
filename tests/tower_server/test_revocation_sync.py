from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from certs.ca import Authority
from certs.revocation import ALL_AGENTS
from protocol.constants import Code
from tower_server.revocation_sync import sync_revocations
from tower_server.revocations import Revocations
from tower_server.store.sqlite import SqliteStore

pytestmark = pytest.mark.asyncio
NOW = time.time()
AUTHORITY = Authority.create("hq", at=NOW)


class Registry:
    """Of the tunnels, what is ended."""

    def __init__(self) -> None:
        self.ended: list[Any] = []
        self.members = {"edge": None, "gone": None}

    async def look(self, cluster: str) -> None:
        self.ended.append(cluster)

    def close_agent(self, cluster: str, agent: str, *, code: Code, text: str) -> int:
        assert (code, text) == (Code.REVOKED, f"the agent {agent} was revoked")
        self.ended.append((cluster, agent))
        return 1

    def close_serial(self, serial: int) -> None:
        self.ended.append(serial)


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    made = await SqliteStore.open(tmp_path / "tower.db")
    yield made
    await made.close()


async def test_what_another_server_revoked_is_taken_over_told_and_ended_once(store: SqliteStore) -> None:
    here, there = [await Revocations.load(store, AUTHORITY, at=NOW) for _ in range(2)]
    registry, told = Registry(), []
    here.subscribe(lambda: told.append(here.current.number))
    await sync_revocations(here, registry, registry.look)  # type: ignore[arg-type]
    assert (registry.ended, told) == ([], [])
    await there.revoke_agent("edge", "a1", at=NOW)
    await there.revoke_serial(0x1F, expires=NOW + 60, at=NOW)
    await there.revoke_agent("gone", ALL_AGENTS, at=NOW)
    await there.revoke_agent("never-here", ALL_AGENTS, at=NOW)
    await sync_revocations(here, registry, registry.look)  # type: ignore[arg-type]
    assert registry.ended == [("edge", "a1"), 0x1F, "gone"]
    assert here.current == there.current
    assert told == [int(NOW * 1000) + 3]
    await sync_revocations(here, registry, registry.look)  # type: ignore[arg-type]
    assert len(registry.ended) == 3
    await there.revoke_agent("edge", "a2", at=NOW)
    await sync_revocations(here, registry, registry.look)  # type: ignore[arg-type]
    assert registry.ended[3:] == [("edge", "a2")]


async def test_what_is_revoked_here_afterwards_has_the_next_number(store: SqliteStore) -> None:
    here, there = [await Revocations.load(store, AUTHORITY, at=NOW) for _ in range(2)]
    await there.revoke_user("alice", at=NOW)
    await sync_revocations(here, Registry(), Registry().look)  # type: ignore[arg-type]
    await here.revoke_user("bob", at=NOW)
    assert here.current.number == int(NOW * 1000) + 1
    assert here.current.users.keys() == {"alice", "bob"}
