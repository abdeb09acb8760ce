"""The dependents of a cluster, its agents and enrolment tokens: how their records are found and how they are deleted.

An agent's record is written before the agent gets its identity, and deleted only once the revocation list covers that
identity. So if a server dies in the middle of a deletion, the agents' records are left without a cluster, and `tidy`
(or the next leader) finds in them what is still to be revoked, and up to which time of issue: an agent of the same name
in a new cluster of the same name gets its identity later and is not affected. Until the revocation is written, such an
identity is refused because the cluster's uid on its record is no cluster's any more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from certs.revocation import ALL_AGENTS
from daemon.faults import TowerError
from tower_server.records import Agent
from tower_server.store.base import Conflict, Kind, NotFound, Record, Store

ATTEMPTS: Final = 8  # to change a record that others change at the same time
Upto = Mapping[tuple[str, str], float]
"""By (cluster, agent): everything that was issued to it up to this time is revoked."""
Revoke = Callable[[Upto], Awaitable[object]]


async def dependents(store: Store) -> dict[str, list[Record]]:
    """The records of all tokens and agents now, by the uid of their cluster."""
    found: dict[str, list[Record]] = {}
    for kind in (Kind.TOKEN, Kind.AGENT):  # a token that is still there could let in one more agent
        for record in (await store.list(kind)).items:
            found.setdefault(str(record.data.get("uid")), []).append(record)
    return found


async def tidy(store: Store, *, revoke: Revoke) -> list[Record]:
    """Finishes deletions that were cut short: ends the dependents of clusters that are gone, and returns them."""
    found = await dependents(store)  # before the clusters are listed: what is made from here on has its cluster
    clusters = {record.data.get("uid") for record in (await store.list(Kind.CLUSTER)).items}
    left = [record for uid, records in found.items() if uid not in clusters for record in records]
    await end(store, left, revoke=revoke)
    return left


async def end(store: Store, records: Iterable[Record], *, revoke: Revoke, cluster: str = "", at: float = 0.0) -> None:
    """Revokes what the agents in `records` were issued, then deletes the records. With `cluster`, also revokes all that
    its agents were issued until `at`, whether there is a record of them or not."""
    left, whole = list(records), {(cluster, ALL_AGENTS): at} if cluster else {}
    for _ in range(ATTEMPTS):
        agents = [Agent.read(each) for each in left if each.kind is Kind.AGENT]
        upto = {**whole, **{(each.cluster, each.name): each.issued for each in agents}}
        if upto:
            await revoke(upto)
        left = [again for each in left if (again := await _take_away(store, each)) is not None]
        if not left:
            return
    raise TowerError("TWR108", f"the record of {left[0].kind} {left[0].name} keeps changing")


async def _take_away(store: Store, record: Record) -> Record | None:
    """None once the record is gone or belongs to another cluster; else the record as somebody has just changed it."""
    try:
        await store.delete(record.kind, record.name, expect=record.version)
    except NotFound:
        return None  # an earlier deletion or another server was first
    except Conflict:
        try:
            found = await store.get(record.kind, record.name)
        except NotFound:
            return None
        return found if found.data.get("uid") == record.data.get("uid") else None
    return None
