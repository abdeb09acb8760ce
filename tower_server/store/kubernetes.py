"""The store of a Kubernetes host: every record is an object of its apiserver, whose uniqueness and versions are ours.

Create-if-absent is the apiserver's own, a version is a resourceVersion, so several servers share one store safely. Of a
write that was cut off nobody knows whether it was done (TowerError TWR114): the caller reads before it says it again,
and a claim that nobody noted is taken back at the next start. Nothing but the record itself is ever changed of an
object: others' labels, finalizers and a status stay. An object that is not a record of ours is refused, never taken
over. Which kind lies where, and why: `kubernetes_objects`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final

from daemon.backoff import Backoff
from daemon.faults import TowerError
from daemon.kube import errors as kube
from daemon.kube.client import Client
from daemon.kube.reflector import SHORT_WATCH, check_reached
from daemon.kube.resources import Object, version_of
from daemon.kube.watch import BOOKMARK, Event
from daemon.log import get_logger
from tower_server.store.base import (
    Change,
    ChangeType,
    Conflict,
    Data,
    Expired,
    Invalid,
    Kind,
    Listing,
    NotFound,
    Record,
    Store,
    Version,
)
from tower_server.store.kubernetes_objects import LABEL, PLACES, Place

CHECKED: Final = "tower-check"  # the name of what is never made
CHANGES: Final = {"ADDED": ChangeType.CREATED, "MODIFIED": ChangeType.UPDATED, "DELETED": ChangeType.DELETED}

log = get_logger(__name__)


class KubernetesStore(Store):
    """Make it with `await KubernetesStore.open(client, namespace=...)`; the client is the store's from then on."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.client = client
        self.namespace = namespace
        self._closed = asyncio.Event()

    @classmethod
    async def open(cls, client: Client, *, namespace: str) -> KubernetesStore:
        """Refused with its cause when objects cannot be read: no apiserver, no right to, no CRD."""
        store = cls(client, namespace)
        try:
            for kind in {PLACES[kind].resource: kind for kind in Kind}.values():  # an apiserver may be slow
                await store._newest(kind)
        except BaseException:
            await store.close()
            raise
        return store

    async def get(self, kind: Kind, name: str) -> Record:
        return self._record(kind, await self._read(kind, name))

    async def list(self, kind: Kind, *, prefix: str = "") -> Listing:
        place = PLACES[kind]
        self._check_open()
        try:
            found = await self.client.list(
                place.resource, namespace=self._namespace(place), labels=place.selector, keep=_record_alone
            )
        except kube.KubeError as error:
            raise self._explained(error) from error
        records = [record for body in found.items if (record := self._readable(kind, body)) is not None]
        chosen = sorted((record for record in records if record.name.startswith(prefix)), key=lambda each: each.name)
        return Listing(tuple(chosen), Version(found.version))

    async def watch(self, kind: Kind, *, since: Version) -> AsyncIterator[Change]:
        place, namespace = PLACES[kind], self._namespace(PLACES[kind])
        if not since.isdigit() or not int(since):
            raise Expired(f"version {since!r} is not of this store")
        backoff = Backoff(random=random.random)
        version: str = since
        while not self._closed.is_set():
            try:
                await check_reached(self.client, place.resource, version, namespace=namespace)
                watch = self.client.watch(place.resource, version=version, namespace=namespace, labels=place.selector)
                began, heard = asyncio.get_running_loop().time(), False
                async with aclosing(watch) as events:
                    async for event in events:
                        heard = True
                        backoff.reset()
                        version = version_of(event.object) or version
                        change = self._change(kind, event)
                        if change is not None:
                            yield change
                if not heard and asyncio.get_running_loop().time() - began < SHORT_WATCH:
                    await self._pause(backoff.next())  # whatever ends them at once does so again
            except (kube.Gone, kube.NotServed) as error:
                raise Expired(f"changes of {kind}s after version {version} are no longer held") from error
            except kube.KubeError as error:
                if self._closed.is_set():
                    return
                log.info("store-watch-interrupted", kind=kind.value, code=error.code, text=error.message)
                await self._pause(backoff.next(retry_after=error.retry_after))

    async def create(self, kind: Kind, name: str, data: Data) -> Record:
        body = PLACES[kind].body(kind, name, data, namespace=self.namespace)
        self._check_open()
        try:
            return self._record(kind, await self.client.create(PLACES[kind].resource, body))
        except kube.AlreadyExists as error:
            raise Conflict(kind, name, "exists already") from error
        except kube.Invalid as error:
            raise Invalid(f"{kind} {name!r}: {error.message}") from error
        except kube.KubeError as error:
            raise self._explained(error) from error

    async def update(self, kind: Kind, name: str, data: Data, *, expect: Version) -> Record:
        place = PLACES[kind]
        self._check_open()
        patch = [
            {"op": "replace", "path": "/metadata/resourceVersion", "value": str(expect)},
            *place.patch(kind, name, data),
        ]
        try:
            body = await self.client.patch(
                place.resource, place.name(kind, name), patch, namespace=self._namespace(place), kind="json"
            )
        except kube.NotFound as error:
            raise self._missing(error, kind, name) from error
        except kube.Conflict as error:
            raise Conflict(kind, name, f"has another version by now than {expect}") from error
        except kube.Invalid as error:
            raise Invalid(f"{kind} {name!r}: {error.message}") from error
        except kube.KubeError as error:
            raise self._explained(error) from error
        return self._record(kind, body)

    async def delete(self, kind: Kind, name: str, *, expect: Version | None = None) -> None:
        place = PLACES[kind]
        self._check_open()
        uid = None
        if expect is None:  # who names a version has read a record of ours
            body = await self._read(kind, name)
            self._record(kind, body)  # refuses what is not ours
            uid = body["metadata"]["uid"]
        try:
            await self.client.delete(
                place.resource, place.name(kind, name), namespace=self._namespace(place), uid=uid, version=expect
            )
        except kube.NotFound as error:
            raise self._missing(error, kind, name) from error
        except kube.Conflict as error:
            raise Conflict(kind, name, "was changed meanwhile") from error
        except kube.KubeError as error:
            raise self._explained(error) from error

    async def check(self) -> str:
        """Whether one object of each kind would be taken: a quota, a webhook or an ending namespace lets reads pass."""
        said = await super().check()
        for kind in (Kind.CLUSTER, Kind.CLAIM, Kind.SECRET):
            body = PLACES[kind].body(kind, CHECKED, {"name": CHECKED}, namespace=self.namespace)
            try:
                await self.client.create(PLACES[kind].resource, body, dry_run=True)
            except kube.AlreadyExists:
                continue
            except kube.KubeError as error:
                raise self._explained(error) from error
        return f"{said}, takes writes"

    async def close(self) -> None:
        self._closed.set()
        self.client.close()

    # ---- helpers ------------------------------------------------------------------------------------------------

    def _namespace(self, place: Place) -> str | None:
        return self.namespace if place.resource.namespaced else None

    async def _read(self, kind: Kind, name: str) -> Object:
        place = PLACES[kind]
        self._check_open()
        try:
            return await self.client.get(place.resource, place.name(kind, name), namespace=self._namespace(place))
        except kube.NotFound as error:
            raise self._missing(error, kind, name) from error
        except kube.KubeError as error:
            raise self._explained(error) from error

    async def _newest(self, kind: Kind) -> Version:
        """The version of now. One object is asked for, since the version is what is wanted."""
        place = PLACES[kind]
        self._check_open()
        try:
            return Version(await self.client.newest(place.resource, namespace=self._namespace(place)))
        except kube.KubeError as error:
            raise self._explained(error) from error

    def _record(self, kind: Kind, body: Object) -> Record:
        place = PLACES[kind]
        found = place.read(kind, body)
        if found is None:
            named = f"{place.resource.kind} {body.get('metadata', {}).get('name')}"
            where = f" in namespace {self.namespace}" if place.resource.namespaced else ""
            raise TowerError(
                "TWR105",
                f"the {named}{where} is not a {kind} record of this tower, or was damaged by hand",
                mend=f"rename or delete that object; records carry the label {LABEL}={kind.value}",
            )
        name, data = found
        return Record(kind, name, Version(version_of(body)), data)

    def _readable(self, kind: Kind, body: Object) -> Record | None:
        """One damaged object must not keep the others from being served; whoever needs that one gets its error."""
        try:
            return self._record(kind, body)
        except TowerError as error:
            log.error("record-unreadable", code=error.code, text=error.message)
            return None

    def _change(self, kind: Kind, event: Event) -> Change | None:
        if event.type == BOOKMARK or event.type not in CHANGES:
            return None
        record = self._readable(kind, event.object)
        return None if record is None else Change(CHANGES[event.type], record)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise TowerError(
                "TWR105",
                f"the store at {self.client.address} is closed",
                mend="the server is stopping; ask again when it runs",
            )

    def _missing(self, error: kube.NotFound, kind: Kind, name: str) -> Exception:
        return self._explained(error) if isinstance(error, kube.NotServed) else NotFound(kind, name)

    def _explained(self, error: kube.KubeError) -> TowerError:
        """The same error; with the mend of this store where the namespace or the CRD is missing."""
        if isinstance(error, kube.NotServed):
            return TowerError("TWR116", error.message, mend="apply deploy/crds/ to the host cluster")
        if isinstance(error, kube.NotFound) and f'namespaces "{self.namespace}"' in error.message:
            mend = f"`kubectl create namespace {self.namespace}`, or set `store.namespace` to one that exists"
            return TowerError("TWR116", error.message, mend=mend)
        return error

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return


def _record_alone(body: Object) -> Object:
    """Without what others say of an object, which may be more than the record itself."""
    body.pop("status", None)
    body["metadata"].pop("managedFields", None)
    return body
