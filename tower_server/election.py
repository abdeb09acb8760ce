"""Who of several servers is the leader: one Lease, taken and renewed by writes that carry the version they have read.

Invariants, whatever fails or is delayed:
- The leader counts its time from before the write that renewed, a follower from after the call that saw a change; so
  the old leader knows that its time is over before the next one may begin. Clocks are never compared between machines,
  and the clock goes on while a machine sleeps.
- A lease is written with the version that was read, so of two that take it one wins. Each holder has a term of its own.
- Who leads renews with the version of its own last write, and reads only where that is no longer the lease's: one call
  in place of two, and the next one at once where it took long, so that an apiserver that takes nearly half of
  `renew_deadline` for each ends no term that nobody else wants.
- A write whose fate is unknown counts as not done; the next read tells.
- An end that is orderly gives the lease back, also one that comes while a write is on its way, and a follower takes it
  at its next look.
- Who knows otherwise that the holder is gone (`grace`) need not wait for the whole duration. Should that be wrong, two
  lead for a moment: versions and terms refuse what the first writes from then on, as when a machine was asleep.
Nothing but the controller needs a leader: tunnels and callers are served without.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from daemon.faults import TowerError
from daemon.log import get_logger
from daemon.reminder import Reminder
from protocol import defaults

STOP_DEADLINE: Final = 5.0  # for giving the lease back at the end

log = get_logger(__name__)


def boot_clock() -> float:
    """Seconds since the machine started, its sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Held:
    """A lease as it was read. `holder` is empty for one that was given back; `version` is opaque."""

    holder: str
    term: int
    duration: float
    version: str


class LeaseConflict(Exception):
    """Somebody else wrote the lease first."""


class Lease(Protocol):
    """Where the lease is kept. Failures are `TowerError`."""

    async def read(self) -> Held | None:
        """The lease, or None when there is none yet."""

    async def write(self, lease: Held) -> Held:
        """Makes it (empty version) or replaces that version; the lease with its new version, or LeaseConflict."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. A leader that could not renew for `renew_deadline` stops; others wait for the whole `duration`."""

    duration: float = defaults.LEASE_DURATION
    renew_deadline: float = defaults.LEASE_RENEW_DEADLINE
    retry: float = defaults.LEASE_RETRY

    def __post_init__(self) -> None:
        if not 0 < self.retry < self.renew_deadline < self.duration:
            raise ValueError("of a lease, retry < renew_deadline < duration")


class Elector:
    """One candidate. `identity` is unique to this process, so a restarted one waits as any other."""

    def __init__(
        self,
        lease: Lease,
        *,
        identity: str,
        timing: Timing,
        random: Callable[[], float],
        clock: Callable[[], float] = boot_clock,
        grace: Callable[[str], float | None] = lambda _holder: None,
    ) -> None:
        """`grace(holder)`: for how long that one's lease has to stand unchanged before it may be taken, where it is
        known to be gone; None where nothing is known, and the lease's own duration counts."""
        self.identity = identity
        self.holder = ""
        """Who held the lease when it was last read."""
        self._lease = lease
        self._timing = timing
        self._random = random
        self._clock = clock
        self._seen: Held | None = None
        self._seen_at = 0.0
        self._ours: Held | None = None
        self._until = 0.0
        self._asked_at = 0.0
        self._unsure = False  # whether the last write has come to no known end, as when the end of all came meanwhile
        self._grace = grace
        self._reminder = Reminder(clock=clock)
        self._woken = asyncio.Event()

    @property
    def term(self) -> int | None:
        """The term in which this candidate leads now, or None. Asked before each write that only a leader may do."""
        return self._ours.term if self._ours is not None and self._clock() < self._until else None

    async def attempt(self) -> int | None:
        """One look at the lease: renews, takes it, or waits. The term if this candidate leads now. TowerError."""
        ours = self._ours
        if ours is not None and self.term is not None and not self._unsure:
            if await self._write(ours) is not None:
                return self.term
            self._ours = ours  # somebody else has written: what that means is decided by what is read
        found = await self._lease.read()
        if found is None:
            return await self._write(Held(self.identity, 1, self._timing.duration, ""))
        self._observe(found)
        if found.holder == self.identity:
            if self._ours is None or found.term == self._ours.term:
                return await self._write(found)
            return await self._write(self._next(found))
        self._ours = None
        if found.holder and self._clock() - self._seen_at < self._patience(found):
            return None
        return await self._write(self._next(found))

    async def release(self) -> None:
        """Gives the lease back, if it is ours. Never raises: whoever ends has nothing more to do about it."""
        ours, self._ours = self._ours, None
        if ours is None and not self._unsure:
            return
        try:
            async with asyncio.timeout(STOP_DEADLINE):
                if self._unsure:
                    ours = await self._lease.read()
                while ours is not None and ours.holder == self.identity and not await self._given_back(ours):
                    ours = await self._lease.read()
        except (TowerError, TimeoutError) as error:
            log.warning("lease-not-released", text=str(error), next_leader_within=self._timing.duration)

    async def _given_back(self, ours: Held) -> bool:
        """False where another write was first: one of ours that was still on its way, or of who has it now."""
        try:
            await self._lease.write(Held("", ours.term, 1.0, ours.version))
        except LeaseConflict:
            return False
        return True

    async def run(self, lead: Callable[[int], Awaitable[None]]) -> None:
        """Competes until cancelled; `lead(term)` runs while this candidate leads and is cancelled when it does not.

        An error of `lead` ends the candidacy and is raised, the lease given back.
        """
        try:
            while True:
                term = await self._look()
                if term is not None:
                    log.info("leading", identity=self.identity, term=term)
                    await self._lead(term, lead)
                await self._rest()
        finally:
            await self.release()

    def wake(self) -> None:
        """Something became known of the holder: look at the lease now."""
        self._woken.set()

    async def _rest(self) -> None:
        """Until the next look of one who does not lead: sooner where the holder's time is over sooner."""
        pause = self._pause()
        if self._seen is not None and self._seen.holder:
            left = self._patience(self._seen) - (self._clock() - self._seen_at)
            pause = min(pause, left) if left > 0 else pause
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._woken.wait()
        self._woken.clear()

    def _patience(self, held: Held) -> float:
        """For how long a lease must have stood as it is before another may take it."""
        grace = self._grace(held.holder)
        return held.duration if grace is None else min(grace, held.duration)

    async def _lead(self, term: int, lead: Callable[[int], Awaitable[None]]) -> None:
        work = asyncio.ensure_future(lead(term))
        try:
            while self.term == term:
                pause = self._pause() - (self._clock() - self._asked_at)  # from call to call, however long each takes
                await asyncio.wait({work}, timeout=max(0.0, min(pause, self._until - self._clock())))
                if work.done():
                    await work
                    return
                await self._look()
            log.warning("no-longer-leading", identity=self.identity, term=term, holder=self.holder)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _look(self) -> int | None:
        """`attempt` within its deadline; what fails is logged, and the time that was granted runs on."""
        self._asked_at = self._clock()
        left = self._until - self._clock() if self.term is not None else self._timing.renew_deadline
        try:
            async with asyncio.timeout(max(0.05, left)):
                term = await self.attempt()
        except (TowerError, LeaseConflict, TimeoutError) as error:
            self._not_reached(str(error) or "no answer in time")
            return self.term
        self._reminder.reset()
        return term

    def _not_reached(self, text: str) -> None:
        if self._reminder.due(text):
            log.warning("lease-not-reached", identity=self.identity, text=text)

    async def _write(self, lease: Held) -> int | None:
        started = self._asked_at = self._clock()
        self._unsure = True
        try:
            written = await self._lease.write(lease)
        except LeaseConflict:
            self._unsure, self._ours = False, None
            return None
        self._unsure = False
        self._observe(written)
        self._ours, self._until = written, started + self._timing.renew_deadline
        return self.term

    def _next(self, found: Held) -> Held:
        return Held(self.identity, found.term + 1, self._timing.duration, found.version)

    def _observe(self, found: Held) -> None:
        if found != self._seen:
            self._seen, self._seen_at = found, self._clock()
            self.holder = found.holder

    def _pause(self) -> float:
        return self._timing.retry * (0.8 + 0.4 * self._random())
