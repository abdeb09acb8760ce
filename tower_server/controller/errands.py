"""What the controller does inside members: slow work that may fail for as long as a member is away, kept out of the
reconciles.

A reconcile says what a member should be like (`ask`) and goes on with whatever is known by then. The work itself is
done here, in a few members at a time, each with a deadline and a back-off of its own; when there is a result the
cluster is reconciled again. A result stands until something else is asked for, and is verified again after hours; that
of a federation, which others edit, after minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from daemon.backoff import Backoff
from daemon.faults import TowerError, fault
from daemon.kube.client import Client
from daemon.kube.errors import Forbidden, KubeError, NotFound
from daemon.kube.resources import NAMESPACES
from daemon.log import get_logger
from tower_server.controller import federation
from tower_server.controller.conditions import Condition
from tower_server.controller.federation import CLUSTER_ROLE_BINDINGS, Joining
from tower_server.controller.mark import Owner, mark_name
from tower_server.controller.preflight import Candidate, Refused, accept, release
from tower_server.controller.reach import Reach
from tower_server.controller.writer import Deposed
from tower_server.legacy.binding import binding_name

ACCEPTED: Final = "Accepted"
FEDERATION: Final = "FederationReady"
UNMARKED: Final = "Unmarked"
WORKERS: Final = 4  # members at once: the work is mostly waiting
DEADLINE: Final = 45.0  # of one errand: a dozen calls, and the member's token controller
FAREWELL_DEADLINE: Final = 15.0  # a deletion waits no longer for a member that answers slowly
RETRY: Final = (2.0, 300.0)
REFUSED_AGAIN: Final = 120.0  # how soon somebody's release of a member is noticed
ACCEPTED_AGAIN: Final = 6 * 3600.0
FEDERATED_AGAIN: Final = 600.0

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """What is wanted of a member, and how it is reached."""

    cluster: str
    port: int
    server: str
    """https://... of its Service."""
    labels: Mapping[str, str]
    hosted_as: str
    served_too: frozenset[str]
    kubesphere: str
    passthrough: bool
    healthy: bool
    federate: bool
    joined: bool
    """Whether something of ours may be in the federation."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What an errand has found out. None: nothing is known yet, or there is nothing to report."""

    accepted: Condition | None = None
    federation: Condition | None = None
    left: bool = False
    """Nothing of ours is left in the federation, on either side."""


@dataclass(slots=True)
class _State:
    errand: Errand
    findings: Findings | None = None
    done_for: Errand | None = None
    due: float = 0.0
    busy: bool = False
    work: asyncio.Task[tuple[Findings, bool]] | None = None
    """What is being done in the member."""
    backoff: Backoff = field(default_factory=lambda: Backoff(random=random.random, minimum=RETRY[0], maximum=RETRY[1]))


class Errands:
    """`run` it as a task; `begin` at each term. `known(cluster)` says whether the host has a cluster of that name."""

    def __init__(
        self,
        *,
        host: str,
        client: Client,
        reach: Reach,
        ca_pem: Callable[[], bytes],
        known: Callable[[str], Awaitable[bool]],
    ) -> None:
        self._host = host
        self._client = client
        self._reach = reach
        self._ca_pem = ca_pem
        self._known = known
        self._states: dict[str, _State] = {}
        self._queue: deque[str] = deque()
        self._wake = asyncio.Event()
        self._fence: Callable[[], object] = lambda: None
        self._poke: Callable[[str], None] = lambda _: None
        self._uid = ""

    def begin(self, *, fence: Callable[[], object], poke: Callable[[str], None]) -> None:
        """Begin a term of leadership, with nothing known; what is still done of an earlier one is stopped. `fence`
        is called before each write and raises Deposed once the term is over; `poke(cluster)` has the cluster reconciled
        again."""
        self._fence, self._poke = fence, poke
        for state in self._states.values():
            if state.work is not None:
                state.work.cancel()
        self._states.clear()
        self._queue.clear()

    def ask(self, errand: Errand) -> Findings | None:
        """The findings about a member by now. If what is wanted has not been done yet, it is begun."""
        state = self._states.setdefault(errand.cluster, _State(errand))
        state.errand = errand
        due = errand != state.done_for or time.monotonic() >= state.due
        if due and not state.busy and (errand.healthy or errand.joined):
            state.busy = True
            self._queue.append(errand.cluster)
            self._wake.set()
        return state.findings

    async def _forget(self, cluster: str) -> None:
        """Stop what is being done for a cluster that ends: it could otherwise remake what the farewell deletes."""
        state = self._states.pop(cluster, None)
        if state is not None and state.work is not None:
            state.work.cancel()
            await asyncio.wait({state.work})

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(WORKERS):
                tasks.create_task(self._work(), name=f"errands-{number}")

    async def _work(self) -> None:
        while True:
            while not self._queue:
                self._wake.clear()
                await self._wake.wait()
            state = self._states.get(self._queue.popleft())
            if state is not None:
                await self._do(state)

    async def _do(self, state: _State) -> None:
        errand, before, retry = state.errand, state.findings, True
        try:
            doing = self._errand(errand, before if before is not None else Findings())
            state.work = asyncio.create_task(doing, name=f"errand-{errand.cluster}")
            async with asyncio.timeout(DEADLINE):
                state.findings, retry = await state.work
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if own is None or own.cancelling():
                raise
            return  # cut off by a farewell, or by another term
        except Deposed:
            return
        except (TowerError, TimeoutError) as error:
            text = error.message if isinstance(error, TowerError) else f"it took longer than {DEADLINE:g} s"
            state.findings = _not_looked(before, text)
            log.warning("errand-failed", cluster=errand.cluster, text=text)
        except Exception as error:  # the boundary: what goes wrong with one member must not stop the others
            state.findings = _not_looked(before, repr(error))
            log.error("errand-broke", cluster=errand.cluster, exc_info=error)
        finally:
            state.busy = False
        state.done_for = errand
        if retry:
            state.due = time.monotonic() + state.backoff.next()
        else:
            state.backoff.reset()
            state.due = time.monotonic() + _again(state.findings, errand)
        if self._states.get(errand.cluster) is state and (state.findings != before or state.errand != errand):
            self._poke(errand.cluster)

    # ---- one errand ---------------------------------------------------------------------------------------------

    async def _errand(self, errand: Errand, before: Findings) -> tuple[Findings, bool]:
        """Run one errand: its findings, and whether to try again soon."""
        accepted = await self._accept(errand) if errand.healthy else before.accepted
        try:
            said, left = await self._federate(errand, accepted, before.federation)
        except Deposed:
            raise
        except TowerError as error:
            code, reason = (
                ("TWR127", fault("TWR127").reason) if isinstance(error, KubeError) else (error.code, error.reason)
            )
            text = f"{code}: {error.message}; {error.mend}"
            return Findings(accepted, Condition(FEDERATION, "False", reason, text)), True
        return Findings(accepted, said, left), False

    async def _accept(self, errand: Errand) -> Condition:
        if errand.passthrough:
            text = "its agent relays callers to its apiserver untouched, so this host cannot look or leave its mark"
            return Condition(ACCEPTED, "True", UNMARKED, text)
        candidate = Candidate(
            owner=await self._owner(errand.cluster),
            hosted_as=errand.hosted_as,
            served_too=errand.served_too,
            kubesphere=errand.kubesphere,
        )
        try:
            async with self._reach.client(errand.cluster, errand.port) as member:
                said = await accept(member, candidate, known=self._known, fence=self._fence)
        except Refused as error:
            return Condition(ACCEPTED, "False", error.reason, f"{error.code}: {error.message}; {error.mend}")
        return Condition(ACCEPTED, "True", UNMARKED if said else "Accepted", said)

    async def _federate(
        self, errand: Errand, accepted: Condition | None, before: Condition | None
    ) -> tuple[Condition | None, bool]:
        """The condition of the federation, and whether nothing of ours is left in it."""
        joining = self._joining(errand)
        if not errand.federate:
            return await self._leave(errand, joining) if errand.joined else (None, False)
        if await federation.others(self._client, joining, fence=self._fence):
            text = "somebody else has joined it; its KubeFedCluster trusts this tower's root"
            return Condition(FEDERATION, "True", "JoinedByOther", text), False
        if accepted is None or accepted.status != "True":
            return Condition(FEDERATION, "False", "NotAccepted", "the member is not accepted yet"), False
        if errand.passthrough:
            text = "its agent relays callers to its apiserver untouched, so this host cannot make kubefed's account"
            return Condition(FEDERATION, "False", "Passthrough", text), False
        if not errand.healthy:
            return before, False
        if not errand.joined:
            return Condition(FEDERATION, "Unknown", "Joining", "kubefed's account is about to be made"), False
        async with self._reach.client(errand.cluster, errand.port) as member:
            token = await federation.join_member(member, joining, fence=self._fence)
        await federation.join_host(self._client, joining, token, fence=self._fence)
        return Condition(FEDERATION, "True", "Joined", f"as KubeFedCluster {federation.SPACE}/{errand.cluster}"), False

    async def _leave(self, errand: Errand, joining: Joining) -> tuple[Condition, bool]:
        await federation.leave_host(self._client, joining, fence=self._fence)
        if not errand.healthy or errand.passthrough:
            text = f"its KubeFedCluster is gone; the account {joining.account} goes once the member can be reached"
            return Condition(FEDERATION, "False", "LeftBehind", text), False
        async with self._reach.client(errand.cluster, errand.port) as member:
            await federation.leave_member(member, joining, fence=self._fence)
        return Condition(FEDERATION, "False", "Left", "nothing of it is left in the federation"), True

    def _joining(self, errand: Errand) -> Joining:
        return Joining(errand.cluster, self._host, errand.server, self._ca_pem(), errand.labels)

    async def _owner(self, cluster: str) -> Owner:
        if not self._uid:
            self._uid = str((await self._client.get(NAMESPACES, "kube-system"))["metadata"]["uid"])
        return Owner(self._host, self._uid, cluster)

    # ---- a cluster that goes ------------------------------------------------------------------------------------

    async def farewell(self, errand: Errand) -> str:
        """Deletes what was made for a cluster, on the host and, if the member answers, in it. Returns what stays
        behind and how to delete it by hand; empty for nothing. Raises Deposed, and KubeError if the host's own
        apiserver does not answer: a deletion waits for that one, but never for a member."""
        await self._forget(errand.cluster)
        joining, kept = self._joining(errand), ""
        if errand.joined:
            try:
                await federation.leave_host(self._client, joining, fence=self._fence)
            except Forbidden as error:
                kept = f"the KubeFedCluster {federation.SPACE}/{errand.cluster} stays: {error.message}; "
        if errand.passthrough:
            return kept
        why = "it cannot be reached"
        if errand.healthy:
            try:
                async with asyncio.timeout(FAREWELL_DEADLINE):
                    await self._clear(errand, joining)
                return kept
            except Deposed:
                raise
            except (TowerError, TimeoutError) as error:
                why = error.message if isinstance(error, TowerError) else f"not within {FAREWELL_DEADLINE:g} s"
        account = f", and of kubefed: serviceaccount,secret {joining.account} in {federation.SPACE}, clusterrole and "
        account += f"clusterrolebinding {joining.role}"
        return (
            f"{kept}what this host made in the member stays there ({why}): configmap {mark_name(self._host)} in "
            f"kube-system{account if errand.joined else ''}"
        )

    async def _clear(self, errand: Errand, joining: Joining) -> None:
        owner = await self._owner(errand.cluster)
        async with self._reach.client(errand.cluster, errand.port) as member:
            if errand.joined:
                await federation.leave_member(member, joining, fence=self._fence)
            self._fence()
            if await release(member, owner):
                # Last: for a Go agent's member this is what lets this host in.
                with contextlib.suppress(NotFound):
                    await member.delete(CLUSTER_ROLE_BINDINGS, binding_name(self._host))


def _not_looked(before: Findings | None, text: str) -> Findings:
    if before is not None and before.accepted is not None:
        return before
    return Findings(Condition(ACCEPTED, "Unknown", "NotLooked", f"the member could not be looked at: {text}"))


def _again(findings: Findings | None, errand: Errand) -> float:
    """Seconds until the same errand is verified again."""
    accepted = findings.accepted if findings is not None else None
    if accepted is not None and accepted.status != "True":
        return REFUSED_AGAIN
    unmarked = accepted is not None and accepted.reason == UNMARKED and not errand.passthrough
    return FEDERATED_AGAIN if errand.federate or unmarked else ACCEPTED_AGAIN
