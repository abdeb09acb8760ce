"""The clusters' records as the controller keeps them: made, followed and taken away for the Cluster resources.

The record is what every tower server serves by; the resource is where it was asked for. A record that was added by hand
before its resource appeared is adopted, agents and all; one whose resource was deleted and made anew is another one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from daemon.faults import TowerError
from tower_server.controller.allocation import Allocation
from tower_server.controller.limits import ATTEMPTS
from tower_server.records import Cluster
from tower_server.store.base import Change, ChangeType, Conflict, Expired, Kind, NotFound, Store


class Registry:
    """`revoke(name)` is told of a deletion: whatever agents or callers of the cluster hold is good for nothing then."""

    def __init__(self, store: Store, allocation: Allocation, *, revoke: Callable[[str], Awaitable[object]]) -> None:
        self.allocation = allocation
        self._latest = allocation.latest
        self.known: dict[str, Cluster] = {}
        """Records as they were read or heard of last; each write reads anew where it does not fit."""
        self._store = store
        self._revoke = revoke
        self._listed = False

    async def get(self, name: str) -> Cluster | None:
        """The record as it was heard of; it is asked for only until all of them have been listed."""
        if name not in self.known and not self._listed:
            try:
                self.known[name] = Cluster.read(await self._store.get(Kind.CLUSTER, name))
            except NotFound:
                return None
        return self.known.get(name)

    async def run(self, changed: Callable[[str], None]) -> None:
        """Follows the records until cancelled; `changed(name)` for each that is another than what was known."""
        self._listed = False  # another term may have passed since
        while True:
            listing = await self._store.list(Kind.CLUSTER)
            found = {record.name: Cluster.read(record) for record in listing.items}
            for record in listing.items:
                self._latest.heard(record)
            for name in self.known.keys() | found.keys():
                if self.known.get(name) != found.get(name):
                    changed(name)
            self.known, self._listed = found, True
            try:
                async with aclosing(self._store.watch(Kind.CLUSTER, since=listing.version)) as changes:  # type: ignore[type-var]
                    async for change in changes:
                        self._heard(change, changed)
            except Expired:
                continue

    def _heard(self, change: Change, changed: Callable[[str], None]) -> None:
        name = change.record.name
        before = self.known.pop(name, None)
        if change.type is ChangeType.DELETED:
            self._latest.forget(name)
        else:
            self._latest.heard(change.record)
            self.known[name] = Cluster.read(change.record)
        if self.known.get(name) != before:
            changed(name)

    async def follow(self, name: str, *, resource: str) -> Cluster:
        """The record that belongs to the resource of that uid: found, adopted or made."""
        known = self.known.get(name)
        if known is not None and known.resource == resource:
            return known
        made = Cluster(name=name, uid=resource, created=time.time(), resource=resource)
        for _ in range(ATTEMPTS):
            if known is None:
                with contextlib.suppress(Conflict):
                    return await self._latest.create(made)
            try:
                record = await self._latest.read(name, anew=True)  # of another resource it will be deleted
            except NotFound:
                known = None
                continue
            held = Cluster.read(record)
            if held.resource == resource:
                return held
            if held.resource:
                await self.delete(held)
                continue
            adopted = replace(held, resource=resource)
            try:
                return await self._latest.write(adopted, record)
            except (Conflict, NotFound):
                continue
        raise TowerError("TWR108", f"the record of cluster {name} keeps changing")

    async def release(self, cluster: Cluster) -> Cluster:
        """Its resource goes, and it stays: as one that was added by hand, from the next look on."""
        self.known[cluster.name] = released = await self._note(cluster, resource="")
        return released

    async def name_services(self, cluster: Cluster, names: tuple[str, ...]) -> Cluster:
        """Notes under which names and addresses the cluster's Services reach it; its certificate carries them."""
        return await self._note(cluster, service_names=names)

    async def take_token(self, cluster: Cluster, hashed: str | None) -> Cluster:
        """Follows the resource's token for Go agents, by its hash: once for each change there, so that a token that was
        made or taken away by hand since stands until the next."""
        if hashed == cluster.resource_token:
            return cluster
        return await self._note(cluster, legacy_token=hashed, resource_token=hashed)

    async def note_federated(self, cluster: Cluster, federated: bool) -> Cluster:
        """Notes that something may be made in the federation, or that nothing of it is left."""
        return await self._note(cluster, federated=federated)

    async def _note(self, cluster: Cluster, **fields: Any) -> Cluster:
        for attempt in range(ATTEMPTS):
            if replace(cluster, **fields) == cluster:
                return cluster
            record = await self._latest.read(cluster.name, anew=attempt > 0)
            held = Cluster.read(record)
            if held.uid != cluster.uid:
                if attempt:
                    raise TowerError("TWR603", f"the cluster {cluster.name} was deleted meanwhile")
                continue
            try:
                return await self._latest.write(replace(held, **fields), record)
            except (Conflict, NotFound):
                cluster = held
        raise TowerError("TWR108", f"the record of cluster {cluster.name} keeps changing")

    async def delete(self, cluster: Cluster) -> None:
        """The record first, from which on it is gone; then what hung on it. Cut short, it is done again."""
        await self._gone(Kind.CLUSTER, cluster.name)
        self.known.pop(cluster.name, None)
        self._latest.forget(cluster.name)
        await self._revoke(cluster.name)
        for kind, prefix in ((Kind.AGENT, f"{cluster.name}."), (Kind.TOKEN, "")):
            for record in (await self._store.list(kind, prefix=prefix)).items:
                if record.data.get("uid") == cluster.uid:
                    await self._gone(kind, record.name)
        await self.allocation.release(cluster)

    async def _gone(self, kind: Kind, name: str) -> None:
        try:
            await self._store.delete(kind, name)
        except NotFound:
            return  # a deletion that was cut short, or another leader, took it already
