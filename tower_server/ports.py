"""Host ports for clusters: each taken by creating its claim record, so that no two clusters or services ever share one.

A port is given out only when it could be bound a moment ago, so one that another process holds is skipped; should that
process come later, the listener's failed bind becomes a condition of the cluster and the claim stays. A claim whose
cluster is gone (the server died between two writes) is taken back at the next start.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from daemon.faults import TowerError
from tower_server.records import KUBERNETES, KUBESPHERE, Claim, Cluster, claim_record_name
from tower_server.sockets import HELD, listening_socket
from tower_server.store.base import Conflict, Kind, NotFound, Store


@dataclass(frozen=True, slots=True)
class PortRange:
    """Both ends belong to it."""

    first: int
    last: int

    def ports(self) -> Iterator[int]:
        return iter(range(self.first, self.last + 1))

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


class PortAllocator:
    """Claims ports for services of clusters. One allocation at a time here; between processes the store decides."""

    def __init__(self, store: Store, *, bind_address: str, kubernetes: PortRange, kubesphere_offset: int) -> None:
        self._store = store
        self._bind_address = bind_address
        self._offset = kubesphere_offset
        self._ranges = {
            KUBERNETES: kubernetes,
            KUBESPHERE: PortRange(kubernetes.first + kubesphere_offset, kubernetes.last + kubesphere_offset),
        }
        self._one_at_a_time = asyncio.Lock()

    async def allocate(self, *, cluster: str, uid: str, service: str, sibling: int | None = None) -> int:
        """A port of the service's range, claimed; the twin of `sibling` (its apiserver port) is tried first."""
        candidates = self._ranges[service]
        preferred = [sibling + self._offset] if service == KUBESPHERE and sibling is not None else []
        async with self._one_at_a_time:
            claimed = {record.name for record in (await self._store.list(Kind.CLAIM, prefix="port-")).items}
            held = 0
            for port in itertools.chain(preferred, candidates.ports()):
                if port not in candidates or claim_record_name(port) in claimed:
                    continue
                if not can_bind(self._bind_address, port):
                    held += 1
                    continue
                if await self._claim(port, cluster=cluster, uid=uid, service=service):
                    return port
        raise TowerError(
            "TWR109",
            f"no port of {candidates} is free for {service} of cluster {cluster!r}: "
            f"{len(claimed)} claimed by clusters, {held} held by other processes",
        )

    async def adopt(self, clusters: Collection[Cluster]) -> list[str]:
        """After a start: takes back claims without a cluster and claims anew what a cluster has on record.

        Returns what was put right, a sentence each.
        """
        done = []
        owners = {cluster.uid: cluster for cluster in clusters}
        stand = set()
        for record in (await self._store.list(Kind.CLAIM, prefix="port-")).items:
            claim = Claim.read(record)
            port = int(record.name.removeprefix("port-"))
            owner = owners.get(claim.uid)
            if owner is None or owner.ports.get(claim.service) != port:
                await self._store.delete(Kind.CLAIM, record.name, expect=record.version)
                done.append(f"port {port} was claimed for {claim.cluster} without being on its record: released")
            else:
                stand.add((claim.uid, port))
        for cluster in clusters:
            for service, port in cluster.ports.items():
                if (cluster.uid, port) in stand:
                    continue
                if await self._claim(port, cluster=cluster.name, uid=cluster.uid, service=service):
                    done.append(f"port {port} of {cluster.name} had no claim: claimed again")
        return done

    async def release(self, ports: Iterable[int], *, uid: str) -> None:
        """Gives ports back, but only those that this cluster holds. What is released already is let be."""
        for port in ports:
            name = claim_record_name(port)
            try:
                record = await self._store.get(Kind.CLAIM, name)
                if Claim.read(record).uid == uid:
                    await self._store.delete(Kind.CLAIM, name, expect=record.version)
            except (NotFound, Conflict):
                continue

    async def _claim(self, port: int, *, cluster: str, uid: str, service: str) -> bool:
        """Whether the claim was made now; a claim that this cluster holds already is fine and gives False."""
        claim = Claim(cluster=cluster, uid=uid, service=service)
        try:
            await self._store.create(Kind.CLAIM, claim_record_name(port), claim.data())
        except Conflict:
            return False
        return True


def can_bind(address: str, port: int) -> bool:
    """Whether this process could listen there now."""
    try:
        listening_socket(address, port, backlog=1).close()
    except OSError as error:
        if error.errno in HELD:
            return False
        raise TowerError(
            "TWR103",
            f"cluster ports cannot be listened on at {address}: {error.strerror or error}",
            mend="set `ports.bind` to an address of this machine",
        ) from error
    return True
