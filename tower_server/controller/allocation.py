"""Ports for clusters where several servers share a store, safe also while two of them take themselves for the leader.

The order makes it so. A port is claimed by creating its record, which one creator wins; then it is noted on the
cluster's record with the version that was read before the claim. A claim is taken back only when a record read after it
names another port, has another uid, or is gone: each means that whoever made the claim can no longer note it, since its
version is behind. So no port ever stands on two records, and a claim that a dead leader left is adopted or taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from daemon.faults import TowerError
from tower_server.controller.limits import ATTEMPTS
from tower_server.ports import PortRange
from tower_server.records import KUBESPHERE, Claim, Cluster, claim_record_name
from tower_server.store.base import Conflict, Kind, NotFound, Record, Store

PREFIX: Final = "port-"


class PortTaken(TowerError):
    """The port that a cluster asks for belongs to another."""

    def __init__(self, port: int, claim: Claim) -> None:
        super().__init__("TWR121", f"port {port} belongs to cluster {claim.cluster} ({claim.service})")
        self.port = port


class Allocation:
    """`usable(port)` says whether this process could listen there."""

    def __init__(
        self,
        store: Store,
        ranges: Mapping[str, PortRange],
        *,
        kubesphere_offset: int,
        usable: Callable[[int], bool],
    ) -> None:
        self.ranges = ranges
        self._store = store
        self._offset = kubesphere_offset
        self._usable = usable
        self._standing: dict[int, Claim] = {}
        """Claims that were seen to stand: those of ports on record are not made again at every look."""

    async def hold(self, name: str, service: str, *, asked: int | None = None) -> int:
        """The port of a service of the cluster `name`, claimed and on its record; `asked` counts while it has none.

        PortTaken, TowerError TWR109 (none is free) and TWR603 (no such cluster).
        """
        for _ in range(ATTEMPTS):
            try:
                record = await self._store.get(Kind.CLUSTER, name)
            except NotFound:
                raise TowerError("TWR603", f"the cluster {name} was deleted meanwhile") from None
            cluster = Cluster.read(record)
            noted = cluster.ports.get(service)
            claim = Claim(cluster=cluster.name, uid=cluster.uid, service=service)
            if noted is not None:
                await self.confirm(cluster, service)
                return noted
            port = await self._choose(claim, cluster, asked)
            noting = replace(cluster, ports={**cluster.ports, service: port})
            try:
                await self._store.update(Kind.CLUSTER, name, noting.data(), expect=record.version)
            except (Conflict, NotFound):
                continue
            return port
        raise TowerError("TWR108", f"the record of cluster {name} keeps changing")

    async def confirm(self, cluster: Cluster, service: str) -> None:
        """Sees to it that a port on record is claimed: somebody may have deleted the claim. PortTaken."""
        port, claim = cluster.ports[service], Claim(cluster=cluster.name, uid=cluster.uid, service=service)
        if self._standing.get(port) != claim:
            await self._claim(port, claim)

    async def tidy(self) -> list[str]:
        """Takes back claims that nobody can use any more, and learns which stand. What was done, a sentence each."""
        done = []
        listed = (await self._store.list(Kind.CLAIM, prefix=PREFIX)).items
        noted = {record.name: Cluster.read(record) for record in (await self._store.list(Kind.CLUSTER)).items}
        self._standing = {_port(record): Claim.read(record) for record in listed}
        for record in listed:
            claim, port = Claim.read(record), _port(record)
            cluster = noted.get(claim.cluster)
            if cluster is not None and cluster.uid == claim.uid and cluster.ports.get(claim.service) == port:
                continue
            why = await self._useless(claim, port)
            if why:
                self._standing.pop(port, None)
                try:
                    await self._store.delete(Kind.CLAIM, record.name, expect=record.version)
                except (Conflict, NotFound):
                    continue
                done.append(f"the claim of port {port} by cluster {claim.cluster} was taken back: {why}")
        return done

    async def release(self, cluster: Cluster) -> None:
        """Gives back what a deleted cluster held: call it when its record is gone."""
        for record in (await self._store.list(Kind.CLAIM, prefix=PREFIX)).items:
            if Claim.read(record).uid == cluster.uid:
                self._standing.pop(_port(record), None)
                try:
                    await self._store.delete(Kind.CLAIM, record.name, expect=record.version)
                except (Conflict, NotFound):
                    continue

    async def _useless(self, claim: Claim, port: int) -> str:
        try:
            cluster = Cluster.read(await self._store.get(Kind.CLUSTER, claim.cluster))
        except NotFound:
            return "there is no such cluster any more"
        if cluster.uid != claim.uid:
            return "the cluster of that name is another one now"
        noted = cluster.ports.get(claim.service)
        # Without a port on its record an allocation is under way, or was cut short and the claim will be adopted.
        return "" if noted in (None, port) else f"it uses port {noted}"

    async def _choose(self, claim: Claim, cluster: Cluster, asked: int | None) -> int:
        if asked is not None:
            await self._claim(asked, claim)
            return asked
        candidates = self.ranges[claim.service]
        claimed = {}
        for record in (await self._store.list(Kind.CLAIM, prefix=PREFIX)).items:
            port = _port(record)
            claimed[port] = Claim.read(record)
            if claimed[port] == claim and port in candidates:
                return port
        sibling = next((port for each, port in cluster.ports.items() if each != claim.service), None)
        twin = sibling + self._offset if claim.service == KUBESPHERE and sibling is not None else candidates.first
        held = 0
        for port in (twin, *candidates.ports()):
            if port not in candidates or port in claimed:
                continue
            if not self._usable(port):
                held += 1
                continue
            try:
                await self._claim(port, claim)
            except PortTaken:
                continue  # since the list was read
            return port
        raise TowerError(
            "TWR109",
            f"no port of {candidates} is free for {claim.service} of cluster {claim.cluster!r}: "
            f"{len(claimed)} claimed by clusters, {held} held by other processes",
        )

    async def _claim(self, port: int, claim: Claim) -> None:
        """Makes the claim, or finds that it stands; PortTaken when it is another's."""
        name = claim_record_name(port)
        for _ in range(ATTEMPTS):
            try:
                await self._store.create(Kind.CLAIM, name, claim.data())
            except Conflict:
                try:
                    found = Claim.read(await self._store.get(Kind.CLAIM, name))
                except NotFound:
                    continue  # given back just now
                if found != claim:
                    raise PortTaken(port, found) from None
            self._standing[port] = claim
            return
        raise TowerError("TWR108", f"the claim of port {port} keeps changing")


def _port(record: Record) -> int:
    return int(record.name.removeprefix(PREFIX))
