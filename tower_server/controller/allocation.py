"""Ports for clusters where several servers share a store, safe also while two of them take themselves for the leader.

The order makes it so. A port is claimed by creating its record, which one creator wins; then it is noted on the
cluster's record with the version that was read before the claim. A claim is taken back only when a record read after it
names another port, has another uid, or is gone: each means that whoever made the claim can no longer note it, since its
version is behind. So no port ever stands on two records, and a claim that a dead leader left is adopted or taken back.

Which claims stand is listed at the beginning of a term and remembered from then on: a thousand clusters that come at
once read a thousand claims once, not a thousand times. What is remembered only says where to try; creating the claim
decides, and before a range is said to be full it is listed anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from daemon.faults import TowerError
from daemon.log import get_logger
from tower_server.controller.latest import Latest
from tower_server.controller.limits import ATTEMPTS
from tower_server.ports import PortRange
from tower_server.records import KUBESPHERE, Claim, Cluster, claim_record_name
from tower_server.store.base import Conflict, Kind, NotFound, Record, Store, Version

PREFIX: Final = "port-"
UNREADABLE: Final = Claim(cluster="", uid="", service="")
"""Stands for a claim that somebody damaged. Its port is given to nobody; a cluster that has it on record mends it."""

log = get_logger(__name__)


class PortTaken(TowerError):
    """The port that a cluster asks for belongs to another."""

    def __init__(self, port: int, claim: Claim) -> None:
        whose = f"belongs to cluster {claim.cluster} ({claim.service})"
        if claim is UNREADABLE:
            whose = f"is held by the claim {claim_record_name(port)}, which was damaged by hand: delete that Lease"
        super().__init__("TWR121", f"port {port} {whose}")
        self.port, self.claim = port, claim


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
        self.latest = Latest(store)
        self._standing: dict[int, Claim] = {}
        """Claims that were seen to stand: those of ports on record are not made again at every look."""
        self._versions: dict[int, Version] = {}
        """Of those that this process has made or listed: what it takes back needs not be read."""
        self._listed, self._listing = False, asyncio.Lock()
        self._trying: set[int] = set()  # by other reconciles of this process, each of which wants a port of its own

    async def hold(self, name: str, service: str, *, asked: int | None = None) -> int:
        """The port of a service of the cluster `name`, claimed and on its record; `asked` counts while it has none.

        PortTaken, TowerError TWR109 (none is free) and TWR603 (no such cluster).
        """
        for attempt in range(ATTEMPTS):
            try:
                record = await self.latest.read(name, anew=attempt > 0)
            except NotFound:
                raise TowerError("TWR603", f"the cluster {name} was deleted meanwhile") from None
            cluster = Cluster.read(record)
            noted = cluster.ports.get(service)
            claim = Claim(cluster=cluster.name, uid=cluster.uid, service=service)
            if noted is not None:
                if attempt == 0:
                    continue  # what is remembered may be of a cluster that is gone
                await self.confirm(cluster, service)
                return noted
            port = await self._choose(claim, cluster, asked)
            noting = replace(cluster, ports={**cluster.ports, service: port})
            try:
                await self.latest.write(noting, record)
            except (Conflict, NotFound):
                await self._spare(port, cluster.uid)  # it may be gone, or have another port by now
                continue
            return port
        raise TowerError("TWR108", f"the record of cluster {name} keeps changing")

    async def confirm(self, cluster: Cluster, service: str) -> None:
        """Sees to it that a port on record is claimed: somebody may have deleted the claim. PortTaken."""
        port, claim = cluster.ports[service], Claim(cluster=cluster.name, uid=cluster.uid, service=service)
        if self._standing.get(port) != claim:
            await self._claim(port, claim, noted=True)

    async def tidy(self) -> list[str]:
        """Takes back claims that nobody can use any more, makes those again that are noted and do not stand, and learns
        which stand. What was done, a sentence each."""
        done = []
        listed = await self._list()
        noted = {record.name: Cluster.read(record) for record in (await self._store.list(Kind.CLUSTER)).items}
        for each in noted.values():
            for service, port in each.ports.items():
                if self._standing.get(port, UNREADABLE) is not UNREADABLE:
                    continue
                why = "damaged" if port in self._standing else "missing"
                with contextlib.suppress(PortTaken):  # just now: its own reconcile says so
                    await self.confirm(each, service)  # before somebody else asks for one
                    done.append(f"the claim of port {port} by cluster {each.name} was made again: it was {why}")
        for port, record in listed.items():
            claim = _claim_of(record)
            if claim is UNREADABLE:
                continue
            cluster = noted.get(claim.cluster)
            if cluster is not None and cluster.uid == claim.uid and cluster.ports.get(claim.service) == port:
                continue
            why = await self._taken_back(port, record)
            if why:
                done.append(f"the claim of port {port} by cluster {claim.cluster} was taken back: {why}")
        return done

    async def release(self, cluster: Cluster) -> None:
        """Gives back what a deleted cluster held: call it when its record is gone."""
        self.latest.forget(cluster.name)
        await self._remember()
        theirs = {port for port, claim in self._standing.items() if claim.uid == cluster.uid}
        for port in theirs | set(cluster.ports.values()):
            await self._give_back(port, cluster.uid)

    async def spare(self, cluster: Cluster) -> None:
        """Takes back what a cluster held whose record somebody else has deleted. What fails is left for `tidy`."""
        await self._remember()
        theirs = {port for port, claim in self._standing.items() if claim.uid == cluster.uid}
        for port in theirs | set(cluster.ports.values()):
            await self._spare(port, cluster.uid)

    async def _spare(self, port: int, uid: str) -> None:
        """Takes back that cluster's claim of a port, if nobody can use it any more."""
        try:
            record = await self._store.get(Kind.CLAIM, claim_record_name(port))
            if _claim_of(record).uid == uid:
                await self._taken_back(port, record)
        except NotFound:
            if self._standing.get(port, UNREADABLE).uid == uid:
                del self._standing[port]
        except TowerError as error:
            log.info("claim-left", port=port, text=error.message)

    async def _give_back(self, port: int, uid: str) -> None:
        """Takes a claim away, if it is that cluster's."""
        name, held = claim_record_name(port), self._standing.pop(port, None)
        version = self._versions.pop(port, None) if held is not None and held.uid == uid else None
        for _ in range(ATTEMPTS):
            try:
                if version is None:
                    record = await self._store.get(Kind.CLAIM, name)
                    if _claim_of(record).uid != uid:
                        return
                    version = record.version
                await self._store.delete(Kind.CLAIM, name, expect=version)
            except Conflict:
                version = None
                continue
            except NotFound:
                pass  # another leader was first
            return

    async def _taken_back(self, port: int, record: Record) -> str:
        """Takes a claim away that nobody can use any more; why, or empty where it stays."""
        why = await self._useless(_claim_of(record), port)
        if why:
            self._standing.pop(port, None)
            try:
                await self._store.delete(Kind.CLAIM, record.name, expect=record.version)
            except (Conflict, NotFound):
                return ""
        return why

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
        await self._remember()
        port = self._own(claim)
        if port is not None:
            try:
                await self._claim(port, claim)
            except PortTaken as taken:  # it was taken back, by another leader
                self._standing[port] = taken.claim
                port = None
        if port is None:
            port = await self._try(claim, cluster)
        if port is None:
            await self._list()  # what others gave back is not heard of
            port = await self._try(claim, cluster)
        if port is not None:
            return port
        candidates = self.ranges[claim.service]
        claimed = sum(port in self._standing for port in candidates.ports())
        held = sum(port not in self._standing and not self._usable(port) for port in candidates.ports())
        raise TowerError(
            "TWR109",
            f"no port of {candidates} is free for {claim.service} of cluster {claim.cluster!r}: "
            f"{claimed} claimed by clusters, {held} held by other processes",
        )

    def _own(self, claim: Claim) -> int | None:
        """What was claimed for it and not noted: by this process a moment ago, or by a leader that died."""
        ours = (port for port, held in self._standing.items() if held.uid == claim.uid and held == claim)
        return next((port for port in ours if port in self.ranges[claim.service]), None)

    async def _try(self, claim: Claim, cluster: Cluster) -> int | None:
        """Claims the first port that is free; None when there is none."""
        candidates = self.ranges[claim.service]
        sibling = next((port for each, port in cluster.ports.items() if each != claim.service), None)
        twin = sibling + self._offset if claim.service == KUBESPHERE and sibling is not None else candidates.first
        for port in (twin, *candidates.ports()):
            if port not in candidates or port in self._standing or port in self._trying or not self._usable(port):
                continue
            self._trying.add(port)
            try:
                await self._claim(port, claim)
            except PortTaken as taken:
                self._standing[port] = taken.claim
                continue
            finally:
                self._trying.discard(port)
            return port
        return None

    async def _remember(self) -> None:
        async with self._listing:
            if not self._listed:
                await self._list()

    async def _list(self) -> dict[int, Record]:
        """The claims that stand now, by port. One that is being made may be missing, and is met when it is made."""
        listed = {}
        for record in (await self._store.list(Kind.CLAIM, prefix=PREFIX)).items:
            number = record.name.removeprefix(PREFIX)
            if number.isdecimal():
                listed[int(number)] = record
            if not number.isdecimal() or _claim_of(record) is UNREADABLE:
                log.error("claim-unreadable", name=record.name, mend="delete that Lease: nobody else does")
        self._standing = {port: _claim_of(record) for port, record in listed.items()}
        self._versions = {port: record.version for port, record in listed.items()}
        self._listed = True
        return listed

    async def _claim(self, port: int, claim: Claim, *, noted: bool = False) -> None:
        """Makes the claim, or finds that it stands; PortTaken when it is another's. One that was damaged is written
        anew for a cluster on whose record the port is `noted`: no other can have it there."""
        name = claim_record_name(port)
        for _ in range(ATTEMPTS):
            try:
                self._versions[port] = (await self._store.create(Kind.CLAIM, name, claim.data())).version
            except Conflict:
                try:
                    record = await self._store.get(Kind.CLAIM, name)
                except NotFound:
                    continue  # given back just now
                except TowerError as error:
                    if error.code != "TWR105":
                        raise
                    raise PortTaken(port, UNREADABLE) from error  # no record of ours at all
                found = _claim_of(record)
                if found is UNREADABLE and noted:
                    try:
                        done = await self._store.update(Kind.CLAIM, name, claim.data(), expect=record.version)
                    except (Conflict, NotFound):
                        continue
                    self._versions[port] = done.version
                elif found != claim:
                    if found is not UNREADABLE and await self._taken_back(port, record):
                        continue  # of a deletion that was cut short
                    raise PortTaken(port, found) from None
            self._standing[port] = claim
            return
        raise TowerError("TWR108", f"the claim of port {port} keeps changing")


def _claim_of(record: Record) -> Claim:
    try:
        return Claim.read(record)
    except TypeError:  # a field is missing
        return UNREADABLE
