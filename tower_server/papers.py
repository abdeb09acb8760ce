"""What hangs on a cluster beside its own record, its agents and enrolment tokens, and how they end with it.

An agent's record is written before the agent gets its identity, and deleted only when that identity is covered by the
revocation list. So a server that dies in the middle of a deletion leaves agents' records whose cluster is gone, and
from these anybody (`tidy`, the next leader) knows what is still to be revoked, and up to which time of issue: what is
issued later, to an agent of that name in a new cluster of that name, is another's and stays good. Until it is revoked,
an identity is kept out by the cluster's uid on its record, which no cluster has any more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from certs.revocation import ALL_AGENTS
from daemon.faults import TowerError
from tower_server.records import Agent
from tower_server.store.base import Conflict, Kind, NotFound, Record, Store

ATTEMPTS: Final = 8  # at records that others change meanwhile
Upto = Mapping[tuple[str, str], float]
"""By (cluster, agent): until when what it was issued is revoked."""
Revoke = Callable[[Upto], Awaitable[object]]


async def papers(store: Store) -> dict[str, list[Record]]:
    """The tokens and agents that there are now, by the uid of their cluster."""
    found: dict[str, list[Record]] = {}
    for kind in (Kind.TOKEN, Kind.AGENT):  # a token that is still there could let in one more agent
        for record in (await store.list(kind)).items:
            found.setdefault(str(record.data.get("uid")), []).append(record)
    return found


async def tidy(store: Store, *, revoke: Revoke) -> list[Record]:
    """Finishes deletions that were cut short: ends the papers of clusters that are gone. What it has taken away."""
    found = await papers(store)  # first: one that is made from here on has its cluster
    clusters = {record.data.get("uid") for record in (await store.list(Kind.CLUSTER)).items}
    left = [record for uid, records in found.items() if uid not in clusters for record in records]
    await end(store, left, revoke=revoke)
    return left


async def end(store: Store, records: Iterable[Record], *, revoke: Revoke, cluster: str = "", at: float = 0.0) -> None:
    """Revokes what the agents in `records` were issued, then takes the records away. With `cluster`: and all that its
    agents were issued until `at`, whether on record or not."""
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
    """None once it is gone, or is of another cluster; else the record as somebody has changed it meanwhile."""
    try:
        await store.delete(record.kind, record.name, expect=record.version)
    except NotFound:
        return None  # a deletion that was cut short, or another server, took it already
    except Conflict:
        try:
            found = await store.get(record.kind, record.name)
        except NotFound:
            return None
        return found if found.data.get("uid") == record.data.get("uid") else None
    return None
