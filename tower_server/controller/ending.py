"""How a cluster ends: whether it does, what is deleted, and in which order.

Nothing is ended on the word of a watch's copy. The copies lag, each by its own time, so that a cluster may only seem to
be over; resource and record are therefore read from where they are stored, and once more after the farewell in the
member, which may take long. A Cluster that disappears because its CRD was deleted has not been ended by anybody: its
record is kept, like that of a cluster that was added by hand. So is one that somebody has put back from a copy, which
follows a Cluster of before. The record is deleted first and our finalizer last, when nothing of the cluster is left.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from daemon.faults import TowerError
from daemon.kube.client import Client
from daemon.kube.errors import Conflict, KubeError, NotFound
from daemon.kube.resources import CLUSTERS, ENDPOINT_SLICES, MEMBERS, SERVICES, Object, Resource
from daemon.log import get_logger
from protocol.jsontext import parse_object
from tower_server.controller.conditions import Condition, find
from tower_server.controller.events import Events
from tower_server.controller.facts import Facts
from tower_server.controller.membership import Membership
from tower_server.controller.names import FINALIZER, external_name, is_of, service_name
from tower_server.controller.registry import Registry
from tower_server.controller.status import refused, troubled
from tower_server.controller.twins import Twins
from tower_server.controller.wanted import Wanted, read_wanted
from tower_server.controller.writer import Writer
from tower_server.records import Cluster
from tower_server.store.kubernetes_objects import WRITER

KIND_DELETED: Final = (
    f"the CRD {CLUSTERS} is being deleted, and every Cluster with it: this one is kept and served as it was",
    "install the CRD and make its Cluster again, or `towerctl delete cluster` it",
)
PUT_BACK: Final = (
    "its Member was put back from a copy, and follows a Cluster of before: it is kept and served as it was",
    "make its Cluster again, which adopts it, or `towerctl delete cluster` it",
)
BRIEF: Final = 1.0  # seconds: what was read more recently need not be read again

log = get_logger(__name__)


async def everybody_heard() -> Sequence[str]:
    return ()


class View(Protocol):
    """The host's objects as the watches have delivered them: read without a request, and slightly out of date."""

    def get(self, resource: Resource, name: str) -> Object | None: ...

    def of_service(self, resource: Resource, service: str) -> list[Object]:
        """The EndpointSlices of a Service, whoever made them."""

    @property
    def hosted_as(self) -> str:
        """The name of the host's own Cluster, if KubeSphere has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The half of a `Reconciler` that ends clusters, and what both halves work with. Its only state is `twins`."""

    client: Client
    registry: Registry
    view: View
    writer: Writer
    events: Events
    facts: Facts
    twins: Twins
    membership: Membership | None = None
    """None: members are not looked into."""
    unheard: Callable[[], Awaitable[Sequence[str]]] = everybody_heard
    """Which other servers have not heard of what has ended, and why."""

    def read(self, resource: Object | None) -> Wanted | None:
        return read_wanted(resource, ranges=self.registry.allocation.ranges) if resource is not None else None

    def ends(self, resource: Object | None, record: Cluster | None) -> bool:
        """Whether a cluster seems to end: its resource is deleted, or its record no longer matches any resource."""
        wanted = self.read(resource)
        if wanted is not None and self.released(wanted):
            return True
        if record is None or not record.resource:
            return False
        return wanted is None or not (wanted.proxied and wanted.usable and wanted.uid == record.resource)

    def has_objects(self, name: str) -> bool:
        """Whether a Service or an EndpointSlice of that cluster is left."""
        return any(
            is_of(each, name)
            for service in (service_name(name), external_name(name))
            for each in (self.view.get(SERVICES, service), *self.view.of_service(ENDPOINT_SLICES, service))
            if each is not None
        )

    async def settle(self, name: str) -> tuple[Object | None, Cluster | None]:
        """Called for a cluster that seems to be over. Ends it if it is; resource and record as they are then."""
        resource, record = await self._read_stored(name)
        if record is not None and record.resource and await self._put_back(resource, record):
            return resource, await self._keep(record, "PutBack", *PUT_BACK)
        if record is not None and self.membership is not None and await self._end_was_asked(resource, record):
            began = time.monotonic()
            await self._farewell(self.membership, record, resource)
            if time.monotonic() - began > BRIEF:
                resource, record = await self._read_stored(name)
        if record is not None and record.resource and self.ends(resource, record):
            if await self._end_was_asked(resource, record):
                self.writer.fence()
                await self.registry.delete(record)
                await self._tell_unheard(record, resource)
                record = None
            else:
                record = await self._keep(record, "ClusterKindDeleted", *KIND_DELETED)
        return resource, record

    async def _tell_unheard(self, record: Cluster, about: Object | None) -> None:
        """Who is cut off from the apiserver serves the cluster still."""
        for server in await self.unheard():
            text = f"server {server}; until then it may let the cluster's agents and callers in"
            log.warning("still-served", cluster=record.name, text=text)
            if about is not None:
                await self.events.tell(about, [Condition("Removed", "False", "StillServed", text)])

    async def _read_stored(self, name: str) -> tuple[Object | None, Cluster | None]:
        """Resource and record as they are stored. Where the kind is not served there is no resource."""
        try:
            resource: Object | None = await self.client.get(CLUSTERS, name)
        except NotFound:
            resource = None
        return resource, await self.registry.read(name)

    async def _end_was_asked(self, resource: Object | None, record: Cluster) -> bool:
        """Whether somebody asked for its end. Nobody did if the resource is deleted together with its CRD."""
        if not record.resource or not self.ends(resource, record):
            return False
        wanted = self.read(resource)
        if wanted is not None and not wanted.deleting:
            return True  # of another type by now
        return not await self._kind_is_deleted()

    async def _kind_is_deleted(self) -> bool:
        """Whether the CRD of Clusters is deleted: the apiserver then deletes every Cluster, and accepts no new one."""
        status, body = await self.client.raw(f"/apis/{CLUSTERS.api_version}")
        if status not in (200, 404):
            raise TowerError("TWR114", f"the apiserver answered {status} when asked which kinds it serves")
        served = parse_object(body).get("resources", ()) if status == 200 else ()
        return not any(each.get("name") == CLUSTERS.plural and "create" in each.get("verbs", ()) for each in served)

    async def _put_back(self, resource: Object | None, record: Cluster) -> bool:
        """Whether somebody else wrote which Cluster the record follows, and that is none that is here: a copy names the
        one that it was made of, and those that are made again have uids of their own."""
        wanted = self.read(resource)
        if wanted is not None and (wanted.deleting or wanted.uid == record.resource):
            return False
        try:
            member = await self.client.get(MEMBERS, record.name)
        except NotFound:
            return False
        fields = member["metadata"].get("managedFields") or ()
        writers = {each.get("manager") for each in fields if "f:resource" in each.get("fieldsV1", {}).get("f:spec", ())}
        return bool(writers) and WRITER not in writers

    async def _keep(self, record: Cluster, reason: str, text: str, mend: str) -> Cluster:
        """Keep a cluster whose resource is gone without anybody's having ended it. It becomes like one that was added
        by hand, and a new resource of its name adopts it again."""
        self.writer.fence()
        kept = await self.registry.release(record)
        log.warning("cluster-kept", cluster=record.name, text=text)
        member = self.view.get(MEMBERS, record.name)
        if member is not None:
            await self.events.tell(member, [Condition("ResourceWritable", "False", reason, f"{text}; {mend}")])
        return kept

    @staticmethod
    def released(wanted: Wanted) -> bool:
        """Whether the resource is deleted and only our finalizer is left: those of others may still need the tunnel."""
        return wanted.deleting and not [each for each in wanted.finalizers if each != FINALIZER]

    async def _farewell(self, membership: Membership, record: Cluster, about: Object | None) -> None:
        status = (self.view.get(MEMBERS, record.name) or {}).get("status") or {}
        marked = (find(status.get("conditions"), "Accepted") or {}).get("status") == "True"
        observed = self.facts.observed(record.name)
        left = await membership.farewell(record, observed, hosted_as=self.view.hosted_as, marked=marked)
        if left:
            log.warning("left-in-member", cluster=record.name, text=left)
            if about is not None:
                await self.events.tell(about, [Condition("Removed", "False", "LeftInMember", left)])

    async def delete_objects(self, name: str) -> None:
        """Deletes what was made for a cluster. What no watch has delivered yet is deleted once one has."""
        self.twins.note(name, "")
        for service in (service_name(name), external_name(name)):
            await self.delete_service(name, service)

    async def delete_service(self, name: str, service: str) -> None:
        """Deletes one of its Services with all its slices; if that Service is not ours, only the slices that are."""
        held = self.view.get(SERVICES, service)
        ours = held is not None and is_of(held, name)
        for each in self.view.of_service(ENDPOINT_SLICES, service):
            if ours or is_of(each, name):
                await self.writer.delete(ENDPOINT_SLICES, each)
        if held is not None and ours:
            await self.writer.delete(SERVICES, held)

    async def remove_finalizer(self, resource: Object | None, wanted: Wanted | None) -> bool:
        """Removes our finalizer, last of all, when nothing of the cluster is left. False if that is refused."""
        if resource is None or wanted is None or FINALIZER not in wanted.finalizers:
            return True
        left = [each for each in wanted.finalizers if each != FINALIZER]
        body = {**resource, "metadata": {**resource["metadata"], "finalizers": left}}
        try:
            await self.writer.replace(CLUSTERS, body)
        except NotFound:
            return True
        except Conflict:
            raise
        except KubeError as error:
            await self.events.tell(resource, [troubled(refused(error))])
            return False
        return True
