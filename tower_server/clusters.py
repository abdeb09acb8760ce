"""Clusters: adding, deleting, and bringing them up at a start. What is on record decides; the rest follows from it.

Adding writes the record first (its name is the uniqueness), then claims the port, then notes it on the record; deleting
takes the record first, then what hung on it. A server that dies in between finds at its next start what is missing or
left over and puts it right.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
import weakref
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from certs.errors import CertsError
from certs.names import check_label, check_serving_name, parse_host
from daemon.backoff import Backoff
from daemon.faults import TowerError
from daemon.log import get_logger
from daemon.metrics import ServerMetrics
from protocol.constants import Code
from tower_server.agents import Agents
from tower_server.dependents import ATTEMPTS, dependents, end
from tower_server.hold import Hold
from tower_server.listeners import CallerPorts
from tower_server.member import Member
from tower_server.ports import PortAllocator
from tower_server.records import KUBERNETES, KUBESPHERE, Cluster
from tower_server.revocations import Revocations
from tower_server.store.base import (
    ChangeType,
    Conflict,
    Expired,
    Kind,
    NotFound,
    Record,
    Store,
    StoreError,
    Version,
    later,
)
from tower_server.tunnels import TunnelRegistry

SETTLING: Final = 60.0  # seconds after a start in which a controller may still be making records of what is there

log = get_logger(__name__)


class Clusters:
    """Owns the records and, through them, members and ports. Changes to one cluster are made one at a time."""

    def __init__(
        self,
        *,
        store: Store,
        allocator: PortAllocator,
        ports: CallerPorts,
        registry: TunnelRegistry,
        agents: Agents,
        revocations: Revocations,
        metrics: ServerMetrics,
        hold_seconds: float,
        hold_waiters: int,
        resume_window: float,
        own_names: Collection[str],
        heartbeat: bool = True,
        shared: bool = False,
    ) -> None:
        """`heartbeat`: note also that a tunnel is still up, for a start after a crash; else only that one came or went,
        where a write costs others too. `shared`: a controller gives out ports, and others write records (`follow`)."""
        self.ports = ports
        self._store = store
        self._allocator = allocator
        self._registry = registry
        self._agents = agents
        self._revocations = revocations
        self._metrics = metrics
        self._hold_seconds = hold_seconds
        self._hold_waiters = hold_waiters
        self._resume_window = resume_window
        self._own_names = frozenset(name.lower() for name in own_names)
        self._heartbeat = heartbeat
        self._shared = shared
        self._creating = asyncio.Lock()
        self._records: dict[str, Cluster] = {}
        self._versions: dict[str, Version] = {}
        """What the records are as of, one that this server deleted too: a watch tells late what was written since."""
        self._following = False
        self._settled_at = float("-inf")
        self._changing: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        """A lock lives as long as somebody has it or waits for it."""
        self._observers: list[Callable[[str, str], None]] = []

    # ---- reading ------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        return sorted(self._records)

    def get(self, name: str) -> tuple[Cluster, Member]:
        """TowerError TWR603 when there is none."""
        record, member = self._records.get(name), self._registry.members.get(name)
        if record is None or member is None:
            raise TowerError("TWR603", f"there is no cluster {name[:80]!r}")
        return record, member

    @property
    def settling(self) -> bool:
        """Whether a cluster may be unknown here only because its record has still to be made."""
        return time.monotonic() < self._settled_at

    def certificate_names(self, name: str) -> tuple[str, ...]:
        """The names that a cluster's serving certificate carries beside the member name, spelt as they are there."""
        record = self._records.get(name)
        return tuple(str(parse_host(each)) for each in record.certificate_names) if record is not None else ()

    def subscribe(self, observer: Callable[[str, str], None]) -> Callable[[], None]:
        """`observer(ADDED|MODIFIED|DELETED, name)` is called for each change; what is returned ends that."""
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    def _tell(self, change: str, name: str) -> None:
        for observer in list(self._observers):
            observer(change, name)

    # ---- at the start and the end -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Brings up every cluster on record."""
        if self._shared:
            self._settled_at = time.monotonic() + SETTLING
        records = [Cluster.read(record) for record in (await self._store.list(Kind.CLUSTER)).items]
        for done in () if self._shared else await self._allocator.adopt(records):
            log.warning("ports-put-right", text=done)
        for cluster in records:
            if not cluster.ports and not self._shared:
                try:
                    cluster = await self._with_port(cluster, KUBERNETES)
                except TowerError as error:  # a condition of this cluster; the others must come up
                    log.error("no-port", cluster=cluster.name, code=error.code, text=error.message)
            await self._bring_up(cluster)
        self.ports.drop_unclaimed()

    async def _bring_up(self, cluster: Cluster) -> Member:
        metrics = self._metrics.cluster(cluster.name)
        hold = Hold(
            seconds=self._hold_seconds,
            waiters=self._hold_waiters,
            window=self._resume_window,
            metrics=metrics,
        )
        member = Member(
            cluster.name,
            cluster.uid,
            connected=cluster.connected,
            expected=cluster.expected_tunnels,
            metrics=metrics,
            hold=hold,
            changed=self._changed,
        )
        if cluster.connected is not None and time.time() - cluster.connected < self._resume_window:
            hold.lost()  # it had a tunnel until this server was restarted
        self._records[cluster.name] = cluster
        self._registry.members[cluster.name] = member
        if KUBERNETES in cluster.ports:
            await self.ports.add(member, KUBERNETES, cluster.ports[KUBERNETES])
        return member

    def _changed(self, member: Member) -> None:
        verdict = member.verdict
        log.info(
            "cluster-state",
            cluster=member.name,
            state=verdict.state,
            ready=verdict.ready,
            code=verdict.code,
            cause=verdict.cause,
        )
        if member.name in self._records:
            self._tell("MODIFIED", member.name)

    async def follow(self) -> None:
        """Follows what others write of records, until cancelled: for servers that share a store with a controller."""
        self._following = True
        backoff = Backoff(random=random.random)
        while True:
            self._versions.clear()  # a store that was put back numbers anew
            listing = await self._store.list(Kind.CLUSTER)
            found = {record.name for record in listing.items}
            for name in self._records.keys() - found:
                await self._forget(name, listing.version)
            for record in listing.items:
                await self._take(record)
            try:
                async with contextlib.aclosing(self._store.watch(Kind.CLUSTER, since=listing.version)) as changes:  # type: ignore[type-var]
                    async for change in changes:
                        backoff.reset()
                        if change.type is ChangeType.DELETED:
                            await self._forget(change.record.name, change.record.version)
                        else:
                            await self._take(change.record)
            except Expired:
                await asyncio.sleep(backoff.next())

    def _is_news(self, name: str, version: Version) -> bool:
        """Whether that version of a record is later than what is held of it; it counts as held then."""
        held = self._versions.get(name)
        if held is not None and not later(version, held):
            return False
        self._versions[name] = version
        return True

    async def _take(self, record: Record, *, own: bool = False) -> None:
        """A record as it is now: a new cluster, another one of the same name, or a port more. `own`: this server wrote
        it for a cluster that it held, whose end it may have heard of before the answer."""
        async with self._lock(record.name):
            cluster = Cluster.read(record)
            held, member = self._records.get(cluster.name), self._registry.members.get(cluster.name)
            ended = own and (held is None or held.uid != cluster.uid)
            if ended or not self._is_news(record.name, record.version):
                return
            if held is not None and held.uid != cluster.uid:
                self._drop(cluster.name)
                held = None
            if held is None or member is None:
                member = await self._bring_up(cluster)
                log.info("cluster-added", cluster=cluster.name, ports=dict(cluster.ports))
                self._tell("ADDED", cluster.name)
            elif cluster != held:
                self._records[cluster.name] = cluster
                for port in self.ports.of(cluster.name):
                    if cluster.ports.get(port.service, port.port) != port.port:  # of a store that was put back
                        self.ports.remove(cluster.name, port.service, why="the cluster has another port now")
                listening = {port.service for port in self.ports.of(cluster.name)}
                if KUBERNETES in cluster.ports and KUBERNETES not in listening:
                    await self.ports.add(member, KUBERNETES, cluster.ports[KUBERNETES])
                if cluster.connected is not None:
                    member.noted(cluster.connected)
                self._tell("MODIFIED", cluster.name)
        await self.declare(member)

    async def look(self, name: str) -> None:
        """Reads a record anew that another server may have deleted: its watch may tell of it much later."""
        async with self._lock(name):
            try:
                record = await self._store.get(Kind.CLUSTER, name)
            except NotFound:
                self._drop(name)
                return
        await self._take(record)

    async def _forget(self, name: str, version: Version) -> None:
        """A record was deleted: drop the cluster here too."""
        async with self._lock(name):
            if not self._is_news(name, version):
                return
            self._versions.pop(name)
            self._drop(name)

    def _drop(self, name: str) -> None:
        member = self._registry.members.get(name)
        if self._records.pop(name, None) is None or member is None:
            return
        self._end(name, member)
        log.info("cluster-deleted", cluster=name)
        self._tell("DELETED", name)

    def _end(self, name: str, member: Member) -> None:
        """Drop everything held for a cluster: tunnels, callers, ports, metrics."""
        self._registry.members.pop(name, None)
        member.gone = True
        for tunnel in list(member.tunnels):
            tunnel.close(Code.DELETED, f"the cluster {name} was deleted")
        member.hold.close()
        self.ports.remove(name)
        self._metrics.forget(name)

    async def save(self) -> None:
        """Writes down when each cluster was last seen with a tunnel, so that a restart knows."""
        now, members = time.time(), self._registry.members
        flapping = (name for name, member in members.items() if member.flaps.since is not None)
        restless = frozenset(flapping if not self._heartbeat else ())
        for name, cluster in list(self._records.items()):
            member = members.get(name)
            if member is None:
                continue
            connected = now if member.serving and self._heartbeat else member.connected
            if name in restless and cluster.connected is not None:
                continue
            if connected is not None and (cluster.connected is None or connected - cluster.connected > 1.0):
                try:
                    await self._wrote(await self._update(cluster, partial(replace, connected=connected)))
                except TowerError as error:
                    if error.code != "TWR603":  # deleted meanwhile, as this server will hear
                        raise
        departed, self._registry.departed = self._registry.departed, {}
        for (name, agent), (at, version) in departed.items():
            if name in restless:  # what comes and goes is written once it has settled
                self._registry.departed[name, agent] = at, version
                continue
            with contextlib.suppress(TowerError):  # deleted meanwhile
                await self._agents.update(
                    name,
                    agent,
                    lambda held, at=at, version=version: replace(held, seen=at, version=version),  # type: ignore[misc]
                )

    # ---- changing -----------------------------------------------------------------------------------------------

    async def create(
        self, name: str, *, serving_names: Iterable[str] = (), expected_tunnels: int | None = None
    ) -> Cluster:
        """Adds a cluster and listens for it. TowerError TWR604, TWR605, TWR109."""
        names = tuple(serving_names)
        try:
            check_label(name, what="cluster")
            for each in names:
                check_serving_name(each, cluster=name)
        except CertsError as error:
            raise TowerError("TWR605", error.text, mend=error.mend or None) from error
        async with self._creating, self._lock(name):
            self._not_shared(name, names)
            cluster = Cluster(
                name=name,
                uid=str(uuid.uuid4()),
                created=time.time(),
                serving_names=names,
                expected_tunnels=expected_tunnels,
            )
            try:
                await self._store.create(Kind.CLUSTER, name, cluster.data())
            except Conflict:
                raise TowerError("TWR604", f"there is a cluster {name!r} already") from None
            try:
                cluster = await self._with_port(cluster, KUBERNETES)
            except (TowerError, StoreError) as error:
                await self._undo(cluster, error)
                raise
            await self._bring_up(cluster)
        log.info("cluster-added", cluster=name, ports=dict(cluster.ports))
        self._tell("ADDED", name)
        return cluster

    def _not_shared(self, name: str, serving_names: Collection[str]) -> None:
        """Refuses names that are in another cluster's certificate already, or in this server's."""
        own = self._own_names.intersection(each.lower() for each in serving_names)
        if own:
            raise TowerError("TWR605", f"{min(own)} is a name of this tower itself", mend="leave that serving name out")
        for other in self._records.values():
            shared = {each.lower() for each in serving_names} & {each.lower() for each in other.serving_names}
            if shared and other.name != name:
                raise TowerError(
                    "TWR605",
                    f"{min(shared)} stands in the serving certificate of cluster {other.name} already",
                    mend="a serving name belongs to one cluster only: leave it out here or there",
                )

    async def delete(self, asked: Cluster) -> None:
        """Takes that cluster away with all that is its own. TowerError TWR603 when it is not there, TWR108 when another
        has its name by now, or a resource has taken it over: nothing is taken away then."""
        name = asked.name
        async with self._lock(name):
            cluster, member = self.get(name)
            taken = await self._take_record(asked)  # now it counts as deleted: what is left is tidied up later
            ports = {*cluster.ports.values(), *(taken.ports.values() if taken is not None else ())}
            at = time.time()
            self._records.pop(name, None)
            self._end(name, member)
            await end(
                self._store,
                (await dependents(self._store)).get(cluster.uid, ()),
                revoke=lambda upto: self._revocations.revoke_agents(upto, at=at),
                cluster=name if taken is not None else "",  # another was first: the name may have a new one by now
                at=at,
            )
            await self._allocator.release(ports, uid=cluster.uid)
        log.info("cluster-deleted", cluster=name)
        self._tell("DELETED", name)

    async def set_legacy(self, name: str, **changes: Any) -> Cluster:
        """Changes what Go agents may do here (`legacy_token`, `legacy_until`). TowerError TWR603."""
        async with self._lock(name):
            record = await self._update(self.get(name)[0], partial(replace, **changes))
        await self._wrote(record)
        self._tell("MODIFIED", name)
        return Cluster.read(record)

    async def _undo(self, cluster: Cluster, error: Exception) -> None:
        """Takes away again what was written of a cluster that could not be added. Where that fails too, what is told is
        still the `error` that made it necessary, with what stays."""
        try:
            taken = await self._take_record(cluster)
            if taken is not None:  # a controller may have noted ports on it
                await self._allocator.release(taken.ports.values(), uid=cluster.uid)
        except (TowerError, StoreError) as left:
            first = error if isinstance(error, TowerError) else TowerError("TWR105", str(error))
            text = (
                f"{first.message}; and the record of cluster {cluster.name} stays, since taking it away failed: {left}"
            )
            mend = f"{first.mend}; then look for it by `towerctl get clusters`, and delete it if it is there"
            raise TowerError(first.code, text, mend=mend, retry_after=first.retry_after) from error

    async def _take_record(self, cluster: Cluster) -> Cluster | None:
        """Deletes the stored record if it still belongs to this cluster, and says what it was; None if it is gone."""
        for _ in range(ATTEMPTS):
            try:
                record = await self._store.get(Kind.CLUSTER, cluster.name)
                held = Cluster.read(record)
                if (held.uid, held.resource) != (cluster.uid, cluster.resource):
                    text = f"{held.name} was made anew, or taken over by a resource, meanwhile: nothing was taken away"
                    raise TowerError("TWR108", text, mend="look at it again; if that one is to go too, ask once more")
                await self._store.delete(Kind.CLUSTER, cluster.name, expect=record.version)
            except Conflict:
                continue
            except NotFound:
                return None
            if self._following:
                self._versions[cluster.name] = record.version  # until its deletion is heard of
            else:
                self._versions.pop(cluster.name, None)
            return held
        raise TowerError("TWR108", f"the record of cluster {cluster.name} keeps changing")

    async def declare(self, member: Member) -> None:
        """Follows what a member's agent declares: the port of the second service listens while it is declared."""
        services = member.known_report.get("services")
        declared = isinstance(services, dict) and KUBESPHERE in services
        async with self._lock(member.name):
            record = self._records.get(member.name)
            if record is None or member.gone:
                return
            listening = any(port.service == KUBESPHERE for port in self.ports.of(member.name))
            if declared and not listening:
                if KUBESPHERE not in record.ports:
                    if self._shared:
                        return  # the controller sees the declaration and notes a port, which comes back as a change
                    try:
                        record = await self._with_port(record, KUBESPHERE)
                    except TowerError as error:  # the apiserver's port and every other cluster go on without it
                        log.error("no-port", cluster=member.name, code=error.code, text=error.message)
                        return
                await self.ports.add(member, KUBESPHERE, record.ports[KUBESPHERE])
            elif listening and not declared:  # the claim stays: it comes back under the same port
                self.ports.remove(member.name, KUBESPHERE, why="the service is no longer declared")

    async def _with_port(self, cluster: Cluster, service: str) -> Cluster:
        """Claims a port and writes it into the record; gives the claim back if the record cannot be written."""
        sibling = cluster.ports.get(KUBERNETES)
        port = await self._allocator.allocate(cluster=cluster.name, uid=cluster.uid, service=service, sibling=sibling)
        try:
            record = await self._update(cluster, lambda held: replace(held, ports={service: port, **held.ports}))
        except BaseException:
            with contextlib.suppress(TowerError):  # the claim is taken back later, and the first cause is what counts
                await self._allocator.release([port], uid=cluster.uid)
            raise
        noted = Cluster.read(record)
        if noted.ports[service] != port:  # a controller was first
            await self._allocator.release([port], uid=cluster.uid)
        if self._is_news(record.name, record.version) and record.name in self._records:
            self._records[record.name] = noted
        return noted

    async def _update(self, cluster: Cluster, change: Callable[[Cluster], Cluster]) -> Record:
        """The record as it is then. TowerError TWR603 when it is gone, or another cluster has the name by now."""
        for _ in range(ATTEMPTS):
            try:
                record = await self._store.get(Kind.CLUSTER, cluster.name)
                held = Cluster.read(record)
                if held.uid != cluster.uid:
                    raise NotFound(Kind.CLUSTER, cluster.name)
                return await self._store.update(Kind.CLUSTER, held.name, change(held).data(), expect=record.version)
            except Conflict:
                continue
            except NotFound:
                raise TowerError("TWR603", f"the cluster {cluster.name} was deleted meanwhile") from None
        raise TowerError("TWR108", f"the record of cluster {cluster.name} keeps changing")

    async def _wrote(self, record: Record) -> None:
        """What this server has written counts at once, and so does what others had written there before it."""
        if self._following:
            await self._take(record, own=True)
        elif record.name in self._records:
            self._records[record.name] = Cluster.read(record)

    def _lock(self, name: str) -> asyncio.Lock:
        lock = self._changing.get(name)
        if lock is None:
            lock = self._changing[name] = asyncio.Lock()
        return lock
