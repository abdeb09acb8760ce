"""Keeps one tunnel to a host up: dials, waits, dials again. An agent has as many of these for a host as `links` says.

- The back-off has full jitter and honours the retry-after of a server. Only a tunnel that was welcomed and then lasted
  resets it, so that a server that welcomes and hangs up at once is not hammered, not even by resumed tunnels.
- A wait for a host that could not be reached ends early when another link of this agent reaches it, so that one dead
  address among several does not keep this link from the others. If the address that was connected to led to no tunnel,
  the next dial tries the name's other addresses first.
- When the server drains (GOAWAY), the next tunnel is opened first if there is another server to open it to. The old one
  goes on until its streams have ended or its deadline has passed.
- A tunnel that loses its link, even a draining one, is given another for as long as it waits for one; its streams
  notice a pause only.

Nothing that happens here affects the tunnels to another host.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from daemon.backoff import MAX_RETRY_AFTER, Backoff
from daemon.faults import TowerError
from daemon.log import get_logger
from daemon.metrics import AgentMetrics
from daemon.reminder import Reminder
from daemon.supervisor import Supervisor
from daemon.wirefault import wire_fault
from protocol import events
from protocol.aio.dial import dial
from protocol.aio.hops import DialError, Hop
from protocol.aio.proxydial import DialTarget
from protocol.aio.stream import IncomingStream
from protocol.aio.tunnel import Closed, Tunnel
from protocol.constants import Code
from protocol.defaults import BACKOFF_MIN
from protocol.flow import Budget, Limits
from protocol.handshake import REFUSED_RESUME, AgentHandshake
from tower_agent.faultof import dial_fault
from tower_agent.services import END_AT_TOWER

ATTEMPTS_LEFT: Final = 4  # dials that there is always time for while a tunnel waits for a link
LASTED: Final = 5.0  # seconds after which a tunnel counts as a success
CARRIED: Final = 1.0  # seconds that a link without progress on any stream has to last, to be replaced at once
MOVED: Final = "moved"
"""Key in a tunnel's data: what `_moved` was when it lost its link."""
MAX_DRAINING: Final = 8  # tunnels at once: a host that drains every new tunnel must not make the agent hold them all
DRAIN_POLL: Final = 0.1
DRAIN_LAST: Final = 2.0  # at the deadline of a drain: enough for watches to end before, and for the server's last word
JUST_LOST: Final = "the link was lost as soon as it stood"

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LinkState:
    """How one link to a host is. Wall-clock times; `fault` is why there is no tunnel."""

    connected: bool
    since: float
    fault: TowerError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkParts:
    """What a link is made of; each is asked for anew at every dial, so that renewed things take effect."""

    host: str
    target: Callable[[], DialTarget]
    handshake: Callable[[], AgentHandshake]
    ends_at_tower: Callable[[tuple[bytes, ...]], bool]
    on_stream: Callable[[IncomingStream], None]
    instance: str
    budget: Budget
    limits: Limits
    changed: Callable[[], None]
    welcomed: Callable[[], None]  # by the host, just now
    leaving: Callable[[Tunnel], None]  # the time to end what runs on without end in a tunnel that drains


class LinkSupervisor:
    """One link to a host. `run` until cancelled, then `close`."""

    def __init__(self, parts: LinkParts, *, metrics: AgentMetrics, tasks: Supervisor) -> None:
        self._parts = parts
        self._metrics = metrics
        self._tasks = tasks
        self._backoff = Backoff(random=random.random)
        self._draining: set[Tunnel] = set()
        self._dialled_for: set[Tunnel] = set()  # tunnels that another link is dialled for
        self._made: Tunnel | None = None  # opened by an attempt to resume, in place of the tunnel that was gone
        self._linked_at = 0.0
        self._reminder = Reminder()
        self._renewed = False
        self._stopping = False
        self._reached = asyncio.Event()  # the host, by another link
        self._led_nowhere = ""  # the address that the last dial connected to, if it led to no tunnel
        self.tunnel: Tunnel | None = None
        self.state = LinkState(False, time.time())

    async def run(self) -> None:
        """Until it is cancelled; every failure is a state, a log line and a back-off."""
        if self.tunnel is not None:  # an earlier `run` failed while it held it
            self.tunnel.close(Code.INTERNAL, "the agent failed; its log says more")
        while not self._stopping:
            tunnel, self._made = self._made, None
            if tunnel is not None:
                self._set(LinkState(True, time.time()))
            tunnel = tunnel or await self._dial()
            if tunnel is None:
                continue
            if self._stopping:
                tunnel.close(Code.SHUTDOWN, "the agent is stopping")
                break
            self.tunnel = tunnel
            going = await self._hold(tunnel)
            if self.tunnel is tunnel:
                self.tunnel = None
            if going is not None:
                await self._before_next(tunnel, going)
        await asyncio.get_running_loop().create_future()  # stopping: from here on only cancellation ends this

    def renewed(self) -> None:
        """The identity has changed: a tunnel that could do nothing but renew is replaced by a full one."""
        if self.tunnel is not None and self.tunnel.renew_only:
            self._renewed = True
            self.tunnel.close(Code.NONE, "the identity was renewed")

    def host_reached(self) -> None:
        """Another link has just been welcomed: if this one waits because it did not get that far, it may try again."""
        self._reached.set()

    def leave(self, text: str, deadline: float) -> None:
        """Say that this agent goes: the server opens no more streams here."""
        self._stopping = True
        if self.tunnel is not None:
            self.tunnel.drain(Code.SHUTDOWN, text, deadline=deadline, retry_after=0.0)
            self._draining.add(self.tunnel)

    async def emptied(self, deadline: float) -> None:
        """Wait until the streams have ended, at most until the deadline."""
        await asyncio.gather(*(_emptied(tunnel, deadline) for tunnel in list(self._draining)))

    def close(self, code: Code, text: str) -> None:
        """End every tunnel of this link, saying why."""
        for tunnel in (self.tunnel, *self._draining):
            if tunnel is not None:
                tunnel.close(code, text)

    async def _dial(self, resume: Tunnel | None = None) -> Tunnel | None:
        """The next tunnel, or `resume` on a new link; None after a failure and its back-off."""
        outer: list[tuple[bytes, ...]] = []
        parts, address = self._parts, ""

        def on_hop(hop: Hop) -> None:
            nonlocal address
            if hop.name == "tcp":
                address = hop.evidence
            if hop.name == "tls":
                outer.append(hop.chain)
                if resume is not None and resume.data[END_AT_TOWER] and not parts.ends_at_tower(hop.chain):
                    handshake.resume = None  # its raw streams must not go on where somebody could look inside

        def ends_at_tower() -> bool:
            return bool(outer) and parts.ends_at_tower(outer[-1])

        def on_stream(incoming: IncomingStream) -> None:
            incoming.tunnel.data.setdefault(END_AT_TOWER, ends_at_tower())  # right behind WELCOME, the dial still runs
            parts.on_stream(incoming)

        self._reached.clear()  # also what happens during the dial counts
        try:
            handshake = parts.handshake()
            tunnel = await dial(
                replace(parts.target(), after=self._led_nowhere),
                handshake=handshake,
                instance=parts.instance,
                budget=parts.budget,
                limits=parts.limits,
                on_stream=on_stream,
                on_hop=on_hop,
                resume=resume,
                anew=resume is self.tunnel,  # one that drains has a successor, which a new one would end
            )
        except DialError as error:
            self._metrics.dials.labels(parts.host, error.hop, "failed").inc()
            self._led_nowhere = address or self._led_nowhere
            if resume is not None and resume.closed is not None:
                return None  # it ended by this: whoever holds it says so, and dials anew
            refused = error.hop == "handshake" and error.code is not None  # by the host itself
            await self._failed(dial_fault(error, address), resume, reached=refused)
            return None
        except TowerError as error:
            await self._failed(error, resume)
            return None
        tunnel.data[END_AT_TOWER] = ends_at_tower()
        self._metrics.dials.labels(parts.host, "none", "ok").inc()
        self._linked_at = time.monotonic()
        self._reminder.reset()
        self._parts.welcomed()
        if tunnel is not resume:
            self._set(LinkState(True, time.time()))
            tunnel.on_detached = self._cut
            if tunnel.detached:  # nobody heard of it, and there is nothing in it that were worth coming back for
                tunnel.lose(Code.TUNNEL_LOST, JUST_LOST)
            log.info(
                "tunnel-opened", host=parts.host, tunnel=tunnel.id, server=tunnel.remote, renew_only=tunnel.renew_only
            )
        return tunnel

    # -- a link that is lost -----------------------------------------------------------------------------------------

    def _cut(self, tunnel: Tunnel, lost: events.LinkLost) -> None:
        log.warning(
            "tunnel-cut",
            host=self._parts.host,
            tunnel=tunnel.id,
            code=lost.code.name,
            text=lost.text,
            streams=tunnel.stream_count,
        )
        self._metrics.cuts.labels(self._parts.host).inc()
        if tunnel is self.tunnel:
            fault = TowerError(wire_fault(lost.code, "TWR201"), f"the link was lost: {lost.text}")
            self._set(LinkState(False, time.time(), fault=fault))
        lasted = time.monotonic() - self._linked_at
        if lasted >= LASTED:
            self._backoff.reset()
        if tunnel not in self._dialled_for:  # else whoever dials for it finds it without a link, and goes on
            moved = _moved(tunnel)
            worked = lasted >= CARRIED or moved > tunnel.data.get(MOVED, moved)  # a tunnel's first frames prove nothing
            tunnel.data[MOVED] = moved
            wait = random.random() * BACKOFF_MIN if worked else self._delay(tunnel)  # noqa: S311  # jitter, not a secret
            self._tasks.start(self._resume(tunnel, wait), name=f"resume {tunnel.id}")

    async def _resume(self, tunnel: Tunnel, wait: float) -> None:
        """Dial until the tunnel has another link, or is over."""
        self._dialled_for.add(tunnel)
        try:
            await self._resumed(tunnel, wait)
        finally:
            self._dialled_for.discard(tunnel)

    async def _resumed(self, tunnel: Tunnel, wait: float) -> None:
        lost_at = time.monotonic()
        await asyncio.sleep(wait)
        while tunnel.detached:
            made = await self._dial(tunnel)
            if made is tunnel and tunnel.detached:
                await self._failed(TowerError("TWR201", JUST_LOST), tunnel)
            elif made is tunnel:
                seconds = round(time.monotonic() - lost_at, 3)
                log.info("tunnel-resumed", host=self._parts.host, tunnel=tunnel.id, seconds=seconds)
                self._metrics.resumes.labels(self._parts.host).inc()
                if tunnel is self.tunnel:
                    self._set(LinkState(True, time.time()))
            elif made is not None and self.tunnel is tunnel:
                self._made = made
            elif made is not None:
                made.close(Code.NONE, "there is another tunnel already")

    # -- its end -----------------------------------------------------------------------------------------------------

    async def _hold(self, tunnel: Tunnel) -> events.GoingAway | None:
        """Until the tunnel has ended or drains; what the server said in the latter case."""
        loop = asyncio.get_running_loop()
        leaving: asyncio.Future[events.GoingAway] = loop.create_future()

        def going(_tunnel: Tunnel, event: events.GoingAway) -> None:
            if not leaving.done():
                leaving.set_result(event)

        tunnel.on_going_away = going
        if tunnel.going_away is not None:  # it came right behind WELCOME
            going(tunnel, tunnel.going_away)
        closed = loop.create_task(tunnel.wait_closed(), name=f"tunnel {tunnel.id}")
        try:
            either: set[asyncio.Future[Any]] = {closed, leaving}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            closed.cancel()
        if loop.time() - tunnel.opened_at >= LASTED:
            self._backoff.reset()
        if not leaving.done():
            await self._ended(await tunnel.wait_closed())
            return None
        event = leaving.result()
        log.info(
            "tunnel-drains", host=self._parts.host, tunnel=tunnel.id, why=event.text, deadline=round(event.deadline, 1)
        )
        if len(self._draining) >= MAX_DRAINING:
            oldest = min(self._draining, key=lambda each: each.opened_at)
            oldest.close(Code.DRAINING, f"{MAX_DRAINING} tunnels drain already, this one for longest")
            self._draining.discard(oldest)
        self._draining.add(tunnel)
        self._tasks.start(self._finish(tunnel, event), name=f"drain {tunnel.id}")
        return event

    async def _before_next(self, tunnel: Tunnel, event: events.GoingAway) -> None:
        """Wait before the next dial for as long as the server asked, but at most MAX_RETRY_AFTER. A retry-after beyond
        the deadline of the drain means that nobody serves before this tunnel has ended; what it has beyond the deadline
        is jitter, and only that is waited once the tunnel has ended. A server that drains what it has just welcomed
        meets the back-off too."""
        lasted = asyncio.get_running_loop().time() - tunnel.opened_at >= LASTED
        asked = min(event.retry_after, MAX_RETRY_AFTER)
        with suppress(TimeoutError):
            async with asyncio.timeout(asked):
                closed = await tunnel.wait_closed()
                self._set(LinkState(False, time.time(), fault=_fault(closed)))
                await asyncio.sleep(max(0.0, asked - event.deadline))
        if not lasted:
            await asyncio.sleep(max(0.0, self._backoff.next() - asked))

    async def _finish(self, tunnel: Tunnel, event: events.GoingAway) -> None:
        """Let the streams of a draining tunnel end, at most until the deadline. Those that never end by themselves are
        ended (`leaving`) once the next tunnel is up or, if it does not come, shortly before the deadline."""
        until = time.monotonic() + event.deadline
        last = until - min(DRAIN_LAST, event.deadline / 2)
        try:
            while event.retry_after < event.deadline and self.tunnel in (None, tunnel) and time.monotonic() < last:
                if tunnel.closed is not None:
                    return
                await asyncio.sleep(DRAIN_POLL)
            self._parts.leaving(tunnel)
            if event.retry_after < event.deadline:
                await _emptied(tunnel, until - time.monotonic())
            else:  # nobody serves before it has ended, and only the server knows when that is
                with suppress(TimeoutError):
                    async with asyncio.timeout(until - time.monotonic() + DRAIN_LAST):
                        await tunnel.wait_closed()
        finally:
            self._draining.discard(tunnel)
            late = tunnel.stream_count > 1
            tunnel.close(Code.DRAINING if late else Code.NONE, "the time to drain is over" if late else "drained")

    async def _ended(self, closed: Closed) -> None:
        if self._renewed:
            self._renewed = False
            return
        fault = _fault(closed)
        if closed.code in REFUSED_RESUME:  # the server is there, it is another process: no reason to wait
            if self._made is None:  # else the server gave that in its place
                self._set(LinkState(False, time.time(), fault=fault))
            log.warning("tunnel-down", host=self._parts.host, code=fault.code, text=fault.message)
        else:
            await self._failed(fault)

    async def _failed(self, fault: TowerError, waiting: Tunnel | None = None, *, reached: bool = True) -> None:
        if waiting is None or waiting is self.tunnel:  # one that drains has a successor, which the state is about
            self._set(LinkState(False, self.state.since if not self.state.connected else time.time(), fault=fault))
        delay = self._delay(waiting, fault.retry_after)
        if self._reminder.due(fault.message):
            log.warning(
                "tunnel-down",
                host=self._parts.host,
                code=fault.code,
                text=fault.message,
                attempts=self._backoff.failures,
                next_in=round(delay, 2),
            )
        if reached or fault.retry_after:
            await asyncio.sleep(delay)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._reached.wait()
                await asyncio.sleep(random.random() * BACKOFF_MIN)  # noqa: S311  # as above

    def _delay(self, waiting: Tunnel | None, retry_after: float | None = None) -> float:
        delay = self._backoff.next(retry_after=retry_after)
        if waiting is None or retry_after:
            return delay
        return min(delay, max(BACKOFF_MIN, waiting.waits_for / ATTEMPTS_LEFT))  # what comes back late is still in time

    def _set(self, state: LinkState) -> None:
        self.state = state
        self._parts.changed()


def _moved(tunnel: Tunnel) -> int:
    """Frames of streams that have arrived, at either end."""
    return tunnel.session.frames_received + tunnel.session.frames_acked


def _fault(closed: Closed) -> TowerError:
    by = "the server" if closed.by_peer else "this end"
    text = f"the tunnel was closed by {by}: {closed.text} ({closed.code.name})"
    return TowerError(wire_fault(closed.code, "TWR201"), text)


async def _emptied(tunnel: Tunnel, deadline: float) -> None:
    """Wait until only the control stream is left, or the tunnel or the time is over."""
    until = time.monotonic() + deadline
    while True:
        if tunnel.closed is not None or tunnel.stream_count <= 1 or time.monotonic() >= until:
            return
        await asyncio.sleep(DRAIN_POLL)
