"""The clusters' records as the controller keeps them: created, followed and deleted for the Cluster resources.

Every tower server serves by the records; the resources are where clusters are asked for. A record that was added by
hand before its resource appeared is adopted together with its agents. A resource that was deleted and created anew is
another cluster.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from daemon.backoff import Backoff
from daemon.faults import TowerError
from daemon.log import get_logger
from tower_server.controller.allocation import Allocation
from tower_server.controller.coalesce import Coalesced
from tower_server.controller.limits import ATTEMPTS
from tower_server.dependents import Revoke, dependents, end, tidy
from tower_server.records import Cluster
from tower_server.store.base import Change, ChangeType, Conflict, Expired, Kind, NotFound, Store

log = get_logger(__name__)


class Registry:
    """`revoke` puts agents on the revocation list: those of a cluster that ends."""

    def __init__(self, store: Store, allocation: Allocation, *, revoke: Revoke) -> None:
        self.allocation = allocation
        self._latest = allocation.latest
        self.known: dict[str, Cluster] = {}
        """Records as they were read or heard of last; each write reads anew where it does not fit."""
        self._store = store
        self._revoke = revoke
        self._listed = False
        self._ended: dict[str, list[tuple[Cluster, float]]] = {}
        """Clusters whose records are gone, and since when: who joins one of that name later is not revoked for it."""
        self._vanished: dict[str, list[Cluster]] = {}
        """Clusters whose records somebody else has deleted: their ports may still be claimed."""
        self._dependents = Coalesced(lambda: dependents(store))

    async def get(self, name: str) -> Cluster | None:
        """The record as it was heard of; it is asked for only until all of them have been listed."""
        if name not in self.known and not self._listed:
            try:
                self.known[name] = Cluster.read(await self._store.get(Kind.CLUSTER, name))
            except NotFound:
                return None
        return self.known.get(name)

    async def read(self, name: str) -> Cluster | None:
        """The record as it is stored."""
        try:
            self.known[name] = Cluster.read(await self._latest.read(name, anew=True))
        except NotFound:
            self._lose(name)
        return self.known.get(name)

    async def run(self, changed: Callable[[str], None]) -> None:
        """Follows the records until cancelled; `changed(name)` for each that is another than what was known."""
        self._listed = False  # another term may have passed since, in which others wrote
        self.known.clear()
        backoff = Backoff(random=random.random)
        while True:
            try:
                listing = await self._store.list(Kind.CLUSTER)
                found = {record.name: Cluster.read(record) for record in listing.items}
                for record in listing.items:
                    self._latest.heard(record)
                for name in sorted(self.known.keys() | found.keys()):
                    before, now = self.known.get(name), found.get(name)
                    if before is not None and (now is None or now.uid != before.uid):
                        self._lose(name)
                    if before != now:
                        changed(name)
                self.known, self._listed = found, True
                async with aclosing(self._store.watch(Kind.CLUSTER, since=listing.version)) as changes:  # type: ignore[type-var]
                    async for change in changes:
                        backoff.reset()
                        self._heard(change, changed)
            except Expired:
                await asyncio.sleep(backoff.next())  # also where each list is too old as soon as it is there
            except TowerError as error:  # no term ends for it: whoever leads next has the same store to ask
                delay = backoff.next(retry_after=error.retry_after)
                log.warning("records-not-followed", code=error.code, text=error.message, again_in=round(delay, 1))
                await asyncio.sleep(delay)

    def _heard(self, change: Change, changed: Callable[[str], None]) -> None:
        name = change.record.name
        before = self.known.get(name)
        if change.type is ChangeType.DELETED:
            self._latest.forget(name)
            self._lose(name)
        else:
            self._latest.heard(change.record)
            self.known[name] = Cluster.read(change.record)
        if self.known.get(name) != before or name in self._vanished:
            changed(name)

    def _lose(self, name: str) -> None:
        """There is no such record any more, and if this server knows of it, it has not deleted it."""
        cluster = self.known.pop(name, None)
        if cluster is not None:
            self._vanished.setdefault(name, []).append(cluster)

    async def follow(self, name: str, *, resource: str) -> Cluster:
        """The record of the resource of that uid, made where there is none; or the one that stands in its way: of
        another resource, or added by hand. A cluster that is made has a uid of its own, so that what hangs on one which
        the same resource had before is never taken for its own."""
        if name in self.known:
            return self.known[name]
        made = Cluster(name=name, uid=str(uuid.uuid4()), created=time.time(), resource=resource)
        for _ in range(ATTEMPTS):
            try:
                self.known[name] = await self._latest.create(made)
            except Conflict:
                if await self.read(name) is None:
                    continue
            return self.known[name]
        raise TowerError("TWR108", f"the record of cluster {name} keeps changing")

    async def adopt(self, cluster: Cluster, *, resource: str) -> Cluster:
        """One that was added by hand belongs to a resource from now on; one that another has taken over stays so."""
        return await self._note(cluster, lambda held: bool(held.resource), resource=resource)

    async def release(self, cluster: Cluster) -> Cluster:
        """Its resource goes, and it stays: as one that was added by hand."""
        return await self._note(cluster, resource="")

    async def name_services(self, cluster: Cluster, names: tuple[str, ...]) -> Cluster:
        """Notes under which names and addresses the cluster's Services reach it; its certificate carries them."""
        return await self._note(cluster, service_names=names)

    async def take_token(self, cluster: Cluster, hashed: str | None) -> Cluster:
        """Follows the resource's token for Go agents, by its hash: once for each change there, so that a token that was
        made or taken away by hand since stands until the next."""
        if hashed == cluster.resource_token:
            return cluster

        def followed(held: Cluster) -> bool:
            return held.resource_token == hashed  # the copy was late, and somebody may have changed the other since

        return await self._note(cluster, followed, legacy_token=hashed, resource_token=hashed)

    async def note_federated(self, cluster: Cluster, federated: bool) -> Cluster:
        """Notes that something may be made in the federation, or that nothing of it is left."""
        return await self._note(cluster, federated=federated)

    async def _note(self, cluster: Cluster, done: Callable[[Cluster], bool] | None = None, **fields: Any) -> Cluster:
        """The record with those fields; as it is stored where that is `done` already."""
        for attempt in range(ATTEMPTS):
            if replace(cluster, **fields) == cluster:
                return cluster
            record = await self._latest.read(cluster.name, anew=attempt > 0 or done is not None)
            held = Cluster.read(record)
            if held.uid != cluster.uid:
                if attempt:
                    raise TowerError("TWR603", f"the cluster {cluster.name} was deleted meanwhile")
                continue
            if done is not None and done(held):
                self.known[cluster.name] = held
                return held
            try:
                written = await self._latest.write(replace(held, **fields), record)
            except (Conflict, NotFound):
                cluster = held
                continue
            self.known[cluster.name] = written
            return written
        raise TowerError("TWR108", f"the record of cluster {cluster.name} keeps changing")

    async def delete(self, cluster: Cluster) -> None:
        """The record first, if it still is that one: from then on the cluster is gone. Then what hung on it."""
        for attempt in range(ATTEMPTS):
            try:
                record = await self._latest.read(cluster.name, anew=attempt > 0)
                held = Cluster.read(record)
                if (held.uid, held.resource) != (cluster.uid, cluster.resource):
                    if not attempt:
                        continue
                    raise TowerError("TWR108", f"the record of cluster {cluster.name} was changed meanwhile")
                await self._store.delete(Kind.CLUSTER, cluster.name, expect=record.version)
            except Conflict:
                continue
            except NotFound:
                if not attempt:
                    continue  # what is remembered may be of an earlier one
            break
        else:
            raise TowerError("TWR108", f"the record of cluster {cluster.name} keeps changing")
        self.known.pop(cluster.name, None)
        self._latest.forget(cluster.name)
        self._ended.setdefault(cluster.name, []).append((cluster, time.time()))
        await self.finish(cluster.name)

    async def finish(self, name: str) -> None:
        """Takes away what hung on clusters whose records are gone, once more where that was cut short. Of a server that
        dies in between, the next leader and others tidy up: without its cluster's record no agent is let in."""
        for cluster, at in self._ended.get(name, ()):
            found = (await self._dependents.ask()).get(cluster.uid, ())
            await end(self._store, found, revoke=self._revoke, cluster=name, at=at)
            await self.allocation.release(cluster)
        self._ended.pop(name, None)
        for cluster in self._vanished.pop(name, ()):
            await self.allocation.spare(cluster)

    async def tidy(self) -> list[str]:
        """Finishes what a leader before has not: what was done, a sentence each."""
        left = await tidy(self._store, revoke=self._revoke)
        names = sorted({str(record.data.get("cluster")) for record in left})
        return [f"agents and tokens of {each}, which was deleted, were revoked and taken away" for each in names]
