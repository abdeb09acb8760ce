"""Which servers this host has, and where: a Lease each, which the others follow.

The Lease says who and where, no more, and is written now and then. Whether a server is alive, and what it holds, it
says itself over the replica port: so a dead one is noticed within seconds, an apiserver that is away disturbs nobody,
and heartbeats cost it nothing. A server that stops takes its Lease away; one that died leaves it, and whoever sees it
unchanged for `GONE_AFTER` deletes it. While the Leases cannot be followed nothing is taken for stale.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import math
import random
from dataclasses import dataclass
from typing import Final

from daemon.backoff import Backoff
from daemon.faults import TowerError
from daemon.kube.client import Client
from daemon.kube.errors import Conflict, KubeError, NotFound
from daemon.kube.reflector import Change, Reflector, key_of
from daemon.kube.resources import LEASES, Object, name_of, version_of
from daemon.kube.watch import DELETED
from daemon.log import get_logger
from daemon.reminder import Reminder
from daemon.units import split_address

LABEL: Final = "tower.kubesphere.io/replica"
ADDRESS: Final = "tower.kubesphere.io/address"
CALLERS: Final = "tower.kubesphere.io/callers-address"
PREFIX: Final = "tower-replica-"
MANAGER: Final = "tower-server"
WRITTEN_EVERY: Final = 20.0
STALE_AFTER: Final = 60.0
GONE_AFTER: Final = 600.0
STOP_DEADLINE: Final = 2.0

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Peer:
    """One server of the host as its Lease names it. `instance` is another one for each start."""

    name: str
    instance: str
    host: str
    port: int
    callers: str
    """Its address in EndpointSlices; empty for none."""

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Directory:
    """`follow` and `publish` are tasks of the owner's."""

    def __init__(self, client: Client, me: Peer, *, namespace: str) -> None:
        self.me = me
        self._client = client
        self._namespace = namespace
        self._loop = asyncio.get_running_loop()
        self._seen: dict[tuple[str, str], float] = {}
        self._reflector = Reflector(client, LEASES, namespace=namespace, labels=LABEL)
        self._reflector.subscribe(self._noted)
        self.changed = asyncio.Event()

    # ---- the others ---------------------------------------------------------------------------------------------

    async def follow(self) -> None:
        await self._reflector.run()

    def peers(self, *, stale: bool = False) -> list[Peer]:
        """Those that may be alive, without this one; `stale`: also those that have not written their Lease lately."""
        now, blind = self._loop.time(), self._reflector.fault is not None
        return [
            peer
            for key, lease in self._reflector.items.items()
            if (stale or blind or now - self._seen[key] < STALE_AFTER)
            and (peer := read(lease)) is not None
            and peer.name != self.me.name
        ]

    def _noted(self, change: Change) -> None:
        if change.type == DELETED:
            self._seen.pop(key_of(change.object), None)
        else:
            self._seen[key_of(change.object)] = self._loop.time()
        self.changed.set()

    async def _bury(self) -> None:
        """Leases of servers that died: somebody has to, since names of pods never come back."""
        now = self._loop.time()
        for key, lease in list(self._reflector.items.items()):
            if self._reflector.fault is None and now - self._seen.get(key, now) > GONE_AFTER:
                with contextlib.suppress(NotFound, Conflict):  # somebody else was first, or it came back
                    await self._client.delete(
                        LEASES, name_of(lease), namespace=self._namespace, version=version_of(lease)
                    )
                log.info("replica-forgotten", replica=name_of(lease).removeprefix(PREFIX))

    # ---- this one -----------------------------------------------------------------------------------------------

    async def publish(self) -> None:
        """Writes the Lease now and then until cancelled, then takes it away."""
        backoff, reminder = Backoff(random=random.random), Reminder(every=math.inf)
        try:
            while True:
                try:
                    await self._write()
                    await self._bury()
                except (KubeError, TowerError) as error:
                    if reminder.due(error.code):
                        log.warning("replica-not-published", code=error.code, text=error.message)
                    await asyncio.sleep(backoff.next(retry_after=error.retry_after))
                    continue
                reminder.reset()
                backoff.reset()
                await asyncio.sleep(WRITTEN_EVERY * (0.9 + 0.2 * random.random()))  # noqa: S311
        finally:
            await self._take_away()

    async def _write(self) -> None:
        name = PREFIX + self.me.name
        try:
            found = await self._client.get(LEASES, name, namespace=self._namespace)
        except NotFound:
            await self._client.create(LEASES, self._body({}), field_manager=MANAGER)
            return
        other = (found.get("spec") or {}).get("holderIdentity")
        if other != self.me.instance:
            log.info("replica-name-taken-over", replica=self.me.name, of=other)
        with contextlib.suppress(Conflict, NotFound):  # the next turn is soon enough
            await self._client.replace(LEASES, self._body(found), field_manager=MANAGER)

    def _body(self, found: Object) -> Object:
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        metadata = {**(found.get("metadata") or {}), "name": PREFIX + self.me.name, "namespace": self._namespace}
        metadata.pop("managedFields", None)
        metadata["labels"] = {**(metadata.get("labels") or {}), "app.kubernetes.io/part-of": "tower", LABEL: "server"}
        annotations = {**(metadata.get("annotations") or {}), ADDRESS: self.me.address, CALLERS: self.me.callers}
        metadata["annotations"] = annotations
        spec = {"holderIdentity": self.me.instance, "leaseDurationSeconds": round(STALE_AFTER), "renewTime": now}
        return {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata, "spec": spec}

    async def _take_away(self) -> None:
        """Best effort: what is left becomes stale."""
        name = PREFIX + self.me.name
        try:
            async with asyncio.timeout(STOP_DEADLINE):
                found = await self._client.get(LEASES, name, namespace=self._namespace)
                if (found.get("spec") or {}).get("holderIdentity") == self.me.instance:
                    await self._client.delete(LEASES, name, namespace=self._namespace, version=version_of(found))
        except (TowerError, Conflict, TimeoutError) as error:
            log.info("replica-left-behind", replica=self.me.name, text=str(error))


def read(lease: Object) -> Peer | None:
    """None for a Lease that names no server: somebody's edit must not stop the others from being found."""
    metadata, spec = lease.get("metadata") or {}, lease.get("spec") or {}
    annotations, name = metadata.get("annotations") or {}, str(metadata.get("name", ""))
    try:
        host, port = split_address(annotations.get(ADDRESS))
    except (ValueError, TypeError):
        return None
    holder, callers = spec.get("holderIdentity"), annotations.get(CALLERS, "")
    if not name.startswith(PREFIX) or not host or not isinstance(holder, str) or not isinstance(callers, str):
        return None
    return Peer(name.removeprefix(PREFIX), holder, host, port, callers)
