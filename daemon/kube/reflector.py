"""A local copy of all objects of one kind, kept true by list and watch.

Invariants: subscribers hear every difference between what they heard last and what is now, once and in order, however
often the watch broke in between (a list is compared with the copy); versions are kept, so a broken watch goes on where
it was, and only 410 or an apiserver whose state is an earlier one again lists anew; while the apiserver or the kind
itself (a deleted CRD) is away the copy stays as it was and `fault` says why: an outage never looks like a deletion.
Nothing is asked in a tight loop: a watch that fails, or that ends without a word, waits with jitter.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from daemon.backoff import Backoff
from daemon.faults import TowerError
from daemon.kube.client import SILENCE, Client
from daemon.kube.errors import Gone, KubeError, NotServed, Unreachable
from daemon.kube.resources import Object, Resource, name_of, namespace_of, version_of
from daemon.kube.watch import ADDED, BOOKMARK, DELETED, MODIFIED
from daemon.log import get_logger

LIST_DEADLINE: Final = 30.0  # nobody waits for it, and it may have many pages
SHORT_WATCH: Final = 1.0  # seconds: a watch that ended sooner and said nothing counts as a failure

Key = tuple[str, str]
"""Namespace ("" for a cluster-wide object) and name."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """`type` is ADDED, MODIFIED or DELETED; a deletion carries the last object that was seen."""

    type: str
    object: Object
    old: Object | None = None


def key_of(body: Object) -> Key:
    return namespace_of(body) or "", name_of(body)


async def check_reached(client: Client, resource: Resource, version: str, *, namespace: str | None = None) -> None:
    """Gone where the apiserver has not come to `version` yet: its state is an earlier one again, as after a restore of
    its etcd. It would take a watch from there, and never tell of what has gone or come back with the restore."""
    newest = await client.newest(resource, namespace=namespace)
    if version.isdigit() and newest.isdigit() and int(version) > int(newest):
        text = (
            f"{client.address} has {resource} of version {newest}, and had {version}: its state is an earlier one again"
        )
        raise Gone("TWR116", text)


def without_owners(body: Object) -> Object:
    """Drops metadata.managedFields, which doubles many an object and which no reader needs."""
    body.get("metadata", {}).pop("managedFields", None)
    return body


class Reflector:
    """`run` it as a task of its owner's."""

    def __init__(
        self,
        client: Client,
        resource: Resource,
        *,
        namespace: str | None = None,
        labels: str = "",
        silence: float = SILENCE,
        backoff: Backoff | None = None,
    ) -> None:
        self.resource = resource
        self.version = ""
        """Up to where the copy is true."""
        self.fault: TowerError | None = None
        """Why the copy is not being followed right now; None while it is."""
        self.lists = 0
        self.watches = 0
        self._client = client
        self._namespace, self._labels = namespace, labels
        self._silence = silence
        self._backoff = backoff or Backoff(random=random.random)
        self._items: dict[Key, Object] = {}
        self._listed = False
        self._synced = asyncio.Event()
        self._subscribers: list[Callable[[Change], None]] = []

    # ---- reading ------------------------------------------------------------------------------------------------

    @property
    def items(self) -> Mapping[Key, Object]:
        """What is there. The objects are shared: copy one before changing it."""
        return MappingProxyType(self._items)

    def get(self, name: str, namespace: str | None = None) -> Object | None:
        return self._items.get((namespace or "", name))

    def subscribe(self, subscriber: Callable[[Change], None]) -> Callable[[], None]:
        """Calls `subscriber` for each change from now on (for what is there already: read `items`)."""
        self._subscribers.append(subscriber)
        return lambda: self._subscribers.remove(subscriber)

    @property
    def synced(self) -> bool:
        """Whether there was a first complete list."""
        return self._synced.is_set()

    async def wait_synced(self, deadline: float) -> None:
        """Until the first list is in; then raises what stands in its way."""
        try:
            async with asyncio.timeout(deadline):
                await self._synced.wait()
        except TimeoutError as error:
            text = f"{self._client.address}: no list of {self.resource} within {deadline:g} s"
            raise self.fault or Unreachable("TWR114", text) from error

    # ---- following ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follows until cancelled; every failure of the apiserver is waited out."""
        while True:
            try:
                if self._listed:
                    await check_reached(self._client, self.resource, self.version, namespace=self._namespace)
                else:
                    await self._list()
                await self._follow()
            except Gone as error:
                self._listed = False
                log.info("watch-expired", resource=str(self.resource), text=error.message)
                await asyncio.sleep(self._backoff.next())
            except (KubeError, TowerError) as error:
                if isinstance(error, NotServed):
                    self._listed = False  # its versions mean nothing to a CRD that is made anew
                self._note(error)
                await asyncio.sleep(self._backoff.next(retry_after=error.retry_after))

    async def _list(self) -> None:
        listing = await self._client.list(
            self.resource,
            namespace=self._namespace,
            labels=self._labels,
            keep=self._typed,
            deadline=LIST_DEADLINE,
        )
        self.lists += 1
        found = {key_of(body): body for body in listing.items}
        for key in [key for key in self._items if key not in found]:
            self._deleted(self._items[key])
        for body in found.values():
            self._present(body)
        self.version, self._listed = listing.version, True
        self._synced.set()
        self._well()

    async def _follow(self) -> None:
        """One watch until it ends."""
        self.watches += 1
        started = asyncio.get_running_loop().time()
        heard = False
        watch = self._client.watch(
            self.resource,
            version=self.version,
            namespace=self._namespace,
            labels=self._labels,
            silence=self._silence,
        )
        async with aclosing(watch) as events:
            async for event in events:
                if not heard:
                    heard = True
                    self._well()
                if event.type == DELETED:
                    self._deleted(without_owners(event.object))
                elif event.type in (ADDED, MODIFIED):
                    self._present(without_owners(event.object))
                elif event.type != BOOKMARK:
                    continue  # a type of a later apiserver: nothing that changes an object
                self.version = version_of(event.object) or self.version
        if not heard and asyncio.get_running_loop().time() - started < SHORT_WATCH:
            text = f"{self._client.address} ends watches of {self.resource} as soon as they begin"
            raise Unreachable("TWR114", text)

    def _typed(self, body: Object) -> Object:
        """Items of a list come without kind and apiVersion, those of a watch with them."""
        return without_owners({"apiVersion": self.resource.api_version, "kind": self.resource.kind, **body})

    def _present(self, body: Object) -> None:
        key = key_of(body)
        old = self._items.get(key)
        if old is not None and old["metadata"].get("uid") != body["metadata"].get("uid"):
            self._deleted(old)  # deleted and made anew while nobody watched: two different objects
            old = None
        if old is None or version_of(old) != version_of(body):
            self._items[key] = body
            self._tell(Change(ADDED if old is None else MODIFIED, body, old))

    def _deleted(self, body: Object) -> None:
        old = self._items.pop(key_of(body), None)
        if old is not None:
            self._tell(Change(DELETED, body, old))

    def _tell(self, change: Change) -> None:
        for subscriber in list(self._subscribers):
            subscriber(change)

    def _note(self, error: TowerError) -> None:
        if self.fault is None or self.fault.code != error.code:
            log.warning("not-followed", resource=str(self.resource), code=error.code, text=error.message)
        self.fault = error

    def _well(self) -> None:
        if self.fault is not None:
            log.info("followed-again", resource=str(self.resource), version=self.version)
        self.fault = None
        self._backoff.reset()
