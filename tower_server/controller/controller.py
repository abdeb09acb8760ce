"""Runs the reconciles while this server leads: watches, queue, workers, all of which end with the leadership.

Every reason to look at a cluster ends as its name in the queue: a change of one of its objects, of its record, of what
is seen of its member. At the beginning of a term everything is looked at once, which writes nothing where nothing has
changed meanwhile. A cluster whose work fails waits for its own back-off; what fails in a way that nobody knows is
logged with its trace here, at the boundary, and does not end the others' work.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from daemon.faults import TowerError
from daemon.kube.client import Client
from daemon.kube.errors import NotServed
from daemon.kube.resources import CLUSTERS, ENDPOINT_SLICES, ENDPOINTS, MEMBERS, SERVICES
from daemon.log import get_logger
from tower_server.controller.desired import written_term
from tower_server.controller.limits import (
    RECONCILE_DEADLINE,
    SYNC_DEADLINE,
    TIDY_EVERY,
    TOLD_AFTER,
    WORKERS,
    WRITE_DEADLINE,
)
from tower_server.controller.registry import Registry
from tower_server.controller.reporter import Again
from tower_server.controller.view import Watches
from tower_server.controller.workqueue import WorkQueue
from tower_server.controller.writer import Deposed, Writer
from tower_server.election import Elector
from tower_server.store.base import StoreError

OPTIONAL: Final = frozenset({CLUSTERS, MEMBERS})
"""Kinds that a host may lack: without KubeSphere's there are only clusters that were added by hand."""
FENCED: Final = (SERVICES, ENDPOINT_SLICES, ENDPOINTS)
"""Kinds whose objects say in which term they were written. Each is written only when it differs, so any may be last."""

log = get_logger(__name__)


class Reconciles(Protocol):
    def begin(self, names: Iterable[str]) -> None: ...
    async def reconcile(self, name: str) -> Again: ...
    async def failed(self, name: str, error: Exception) -> None: ...


class Gauges(Protocol):
    """What is counted."""

    def leads(self, leads: bool) -> None: ...
    def depth(self, keys: int) -> None: ...
    def reconciled(self, result: str) -> None: ...


class Controller:
    """`run` it as a task. `make(watches, writer, poke)` builds what does the work of one term."""

    def __init__(
        self,
        *,
        client: Client,
        elector: Elector,
        registry: Registry,
        namespace: str,
        make: Callable[[Watches, Writer, Callable[[str], None]], Reconciles],
        gauges: Gauges,
    ) -> None:
        self.writer: Writer | None = None
        """Of the term that runs, if one does."""
        self._client = client
        self._elector = elector
        self._registry = registry
        self._namespace = namespace
        self._make = make
        self._gauges = gauges
        self._queue: WorkQueue[str] | None = None
        self._unseen: set[str] = set()  # of those that were there when the term began
        self._began = 0.0
        self._wake = asyncio.Event()

    @property
    def idle(self) -> bool:
        """Whether this server leads and has nothing to do now."""
        return self._queue is not None and self._queue.idle

    async def run(self) -> None:
        """Competes for the lead and works while it has it, until cancelled."""
        await self._elector.run(self._lead)

    def poke(self, name: str) -> None:
        """Something about a cluster may have changed. Costs nothing where this server does not lead."""
        if self._queue is not None:
            self._queue.add(name)
            self._wake.set()

    # ---- one term -----------------------------------------------------------------------------------------------

    async def _lead(self, term: int) -> None:
        self._began = time.monotonic()
        watches = Watches(self._client, namespace=self._namespace, changed=self.poke)
        self._gauges.leads(True)
        try:
            async with asyncio.TaskGroup() as tasks:
                for resource, reflector in watches.reflectors.items():
                    tasks.create_task(reflector.run(), name=f"watch-{resource}")
                tidied = tasks.create_task(self._put_claims_right(), name="controller-claims")
                await self._synced(watches)
                await tidied
                made = (watches.reflectors[kind].items.values() for kind in FENCED)
                later = max((written_term(body) for bodies in made for body in bodies), default=0)
                # A lease that somebody deleted begins at term 1 again: go on above what has been written.
                writer = self.writer = Writer(self._client, term=self._fenced(term, max(term, later + 1)))
                queue = self._queue = WorkQueue(random=random.random)
                reconciles = self._make(watches, writer, self.poke)
                tasks.create_task(self._registry.run(self.poke), name="controller-records")
                tasks.create_task(self._tidy(), name="controller-tidy")
                self._unseen = watches.clusters()
                reconciles.begin(self._unseen)
                for name in sorted(self._unseen):
                    self.poke(name)
                await self._dispatch(queue, reconciles)
        except* (TowerError, StoreError) as group:
            for error in group.exceptions:  # the term is over; the next one looks at everything anew
                log.warning("term-ended", term=term, text=str(error))
        finally:
            self._queue = self.writer = None
            self._gauges.leads(False)
            self._gauges.depth(0)

    def _fenced(self, term: int, writes_as: int) -> Callable[[], int | None]:
        return lambda: writes_as if self._elector.term == term else None

    async def _synced(self, watches: Watches) -> None:
        """The first list of everything, without which absence means nothing."""
        for resource, reflector in watches.reflectors.items():
            deadline = asyncio.get_running_loop().time() + SYNC_DEADLINE
            while not reflector.synced:
                missing = resource in OPTIONAL and isinstance(reflector.fault, NotServed)
                if missing or asyncio.get_running_loop().time() > deadline:
                    break
                await asyncio.sleep(0.05)
            if not reflector.synced and not (resource in OPTIONAL and isinstance(reflector.fault, NotServed)):
                await reflector.wait_synced(0.0)

    async def _tidy(self) -> None:
        """Now and then; what fails is tried again at the next round. No term ends for it: others lead no better."""
        while True:
            try:
                for done in await self._registry.tidy():
                    log.warning("put-right", text=done)
                await asyncio.sleep(TIDY_EVERY)
                await self._put_claims_right()
            except (TowerError, StoreError) as error:
                log.warning("not-tidied", text=str(error), again_in=TIDY_EVERY)
                await asyncio.sleep(TIDY_EVERY)
            except Exception as error:  # the boundary: one record that nobody can read is not every cluster's end
                log.error("tidying-broke", exc_info=error)
                await asyncio.sleep(TIDY_EVERY)

    async def _put_claims_right(self) -> None:
        for done in await self._registry.allocation.tidy():
            log.warning("put-right", text=done)

    # ---- work ---------------------------------------------------------------------------------------------------

    async def _dispatch(self, queue: WorkQueue[str], reconciles: Reconciles) -> None:
        """Hands keys to at most WORKERS reconciles at a time, until one of them says that this server leads no more."""
        working: set[asyncio.Task[None]] = set()
        try:
            while True:
                self._wake.clear()
                due = queue.tick(time.monotonic())
                while len(working) < WORKERS and (name := queue.take()) is not None:
                    task = asyncio.create_task(self._work(queue, reconciles, name), name=f"reconcile-{name}")
                    task.add_done_callback(lambda _: self._wake.set())
                    working.add(task)
                self._gauges.depth(len(queue))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if due is None else max(0.0, due - time.monotonic())):
                        await self._wake.wait()
                for task in [each for each in working if each.done()]:
                    working.discard(task)
                    await task
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)

    async def _work(self, queue: WorkQueue[str], reconciles: Reconciles, name: str) -> None:
        now = time.monotonic
        try:
            async with asyncio.timeout(RECONCILE_DEADLINE):
                again = await reconciles.reconcile(name)
        except Deposed:
            raise
        except (TowerError, StoreError, TimeoutError) as error:
            self._failed(queue, name, str(error) or "it took too long", getattr(error, "retry_after", None))
            if queue.failures(name) >= TOLD_AFTER:
                await self._say(reconciles, name, error)
        except Exception as error:  # the boundary: one cluster's surprise is not the others'
            log.error("reconcile-broke", cluster=name, exc_info=error)
            self._failed(queue, name, repr(error), None)
        else:
            self._gauges.reconciled("refused" if again.failed else "ok")
            if again.failed:
                queue.failed(name, now())
            else:
                queue.done(name, again_at=None if again.after is None else now() + again.after)
        self._looked_at(name)

    def _looked_at(self, name: str) -> None:
        """Says once a term that all is as it should be, or is known not to be, and what that has cost."""
        if name in self._unseen:
            self._unseen.discard(name)
            if not self._unseen and self.writer is not None:
                took = round(time.monotonic() - self._began, 3)
                log.info("all-looked-at", seconds=took, writes=self.writer.writes)

    async def _say(self, reconciles: Reconciles, name: str, error: Exception) -> None:
        """Tells whoever looks at the cluster. Where that cannot be written either, the log has it all the same."""
        try:
            async with asyncio.timeout(WRITE_DEADLINE):
                await reconciles.failed(name, error)
        except Deposed:
            raise
        except (TowerError, StoreError, TimeoutError) as unsaid:
            log.debug("failure-not-told", cluster=name, text=str(unsaid))

    def _failed(self, queue: WorkQueue[str], name: str, text: str, retry_after: float | None) -> None:
        delay = queue.failed(name, time.monotonic(), retry_after=retry_after)
        self._gauges.reconciled("failed")
        if queue.failures(name) > 1:  # the first is mostly another's write that came in between
            log.warning("reconcile-failed", cluster=name, text=text, again_in=round(delay, 1))
