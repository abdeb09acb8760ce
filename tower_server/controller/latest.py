"""The latest known records of clusters, at which a write begins, so that it mostly need not read first.

They may be out of date, and nothing depends on them: a write carries the version of the record it was made from. If
that is no longer the stored version the write is refused, and is made again from what is read then.
"""

from __future__ import annotations

from tower_server.records import Cluster
from tower_server.store.base import Conflict, Kind, NotFound, Record, Store


class Latest:
    """Reads and writes of one store's cluster records. `heard` and `forget` keep it near the truth."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._records: dict[str, Record] = {}

    def heard(self, record: Record) -> None:
        self._records[record.name] = record

    def forget(self, name: str) -> None:
        self._records.pop(name, None)

    async def read(self, name: str, *, anew: bool = False) -> Record:
        """The record; `anew` after a Conflict: as it is stored now. NotFound."""
        if anew or name not in self._records:
            self.forget(name)
            self._records[name] = await self._store.get(Kind.CLUSTER, name)
        return self._records[name]

    async def create(self, cluster: Cluster) -> Cluster:
        """Conflict when there is one of that name."""
        self._records[cluster.name] = await self._store.create(Kind.CLUSTER, cluster.name, cluster.data())
        return cluster

    async def write(self, cluster: Cluster, over: Record) -> Cluster:
        """The record as it should be, in place of `over`. Conflict or NotFound when that is not what is stored."""
        try:
            written = await self._store.update(Kind.CLUSTER, cluster.name, cluster.data(), expect=over.version)
        except (Conflict, NotFound):
            self.forget(cluster.name)
            raise
        self._records[cluster.name] = written
        return cluster
