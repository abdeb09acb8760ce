"""Links as TCP makes them: bytes in order or not at all, delayed, slow, stalled, silent, or cut at any byte.

A direction takes bytes while it has room, lets them leave at its bandwidth and arrive after its latency, cut into other
pieces than they were written in. When a link breaks, what is on its way is lost, or still arrives at an end that does
not know yet; each end is told at a time of its own, or never.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random
from typing import Protocol

from tests.simulation.wire import Mark
from tests.simulation.world import Timer, World

READ_SIZE = 64 * 1024  # the most that arrives at once


@dataclass(frozen=True, slots=True)
class Path:
    """What a link is like. Seconds, bytes a second, bytes."""

    latency: float
    jitter: float
    bandwidth: float
    room: int
    pieces: bool  # whether bytes arrive in other pieces than they were written in


class Owner(Protocol):
    """Whoever holds an end of a link."""

    def link_received(self, link: Link, data: bytes) -> None: ...
    def link_writable(self, link: Link) -> None: ...
    def link_lost(self, link: Link, reason: str) -> None: ...


class Order:
    """In which order the bytes of all links between an agent and the server leave and arrive."""

    def __init__(self) -> None:
        self._left = 0
        self._arrived = [0, 0]

    def next(self) -> int:
        """The number of something that leaves."""
        self._left += 1
        return self._left

    def arrived(self, end: int, number: int) -> bool:
        """Whether nothing has arrived at that end that left later."""
        if number < self._arrived[end]:
            return False
        self._arrived[end] = number
        return True


class Direction:
    """From one end of a link to the other."""

    def __init__(self, world: World, path: Path, random: Random, link: Link, to: int, *, order: Order) -> None:
        self.path = path
        self._order = order
        self.carried = 0
        self.written = 0
        self.cut_at: int | None = None  # of the bytes carried: where the link breaks
        self.stalled_until = 0.0
        self.detour = 0.0  # seconds on top of the path's latency
        self.broken = False
        self._world = world
        self._random = random
        self._link = link
        self._to = to
        self._free_at = 0.0
        self._last = 0.0
        self._waiting = 0
        self._flight: deque[tuple[float, int, bytes]] = deque()  # when it arrives, the how manieth it is, what
        self._timer: Timer | None = None
        self._wake: Timer | None = None
        self._starved = False

    @property
    def writable(self) -> bool:
        """Whether there is room; if not, `link_writable` tells when."""
        if self.broken:
            return False
        backlog = self._free_at - self._world.now
        if self._waiting < self.path.room and backlog * self.path.bandwidth < self.path.room:
            return True
        self._starved = True
        if self._wake is None and self._waiting < self.path.room:
            self._wake = self._world.after(max(1e-4, backlog / 2), self._room)
        return False

    def write(self, data: bytes) -> None:
        """Take bytes, which are lost when the link is broken."""
        if self.broken or not data:
            return
        now, path = self._world.now, self.path
        self._free_at = max(now, self._free_at) + len(data) / path.bandwidth
        arrives = self._free_at + path.latency + self.detour + path.jitter * self._random.random()
        self._last = max(self._last, arrives)
        self._flight.append((self._last, self._order.next(), data))
        self._waiting += len(data)
        self.written += len(data)
        if self._timer is None:
            self._timer = self._world.at(self._last, self._arrive)

    def stop(self, *, flush: bool) -> None:
        """Nothing more is taken; what is on its way is lost, or still arrives."""
        self.broken = True
        if not flush:
            self._flight.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _room(self) -> None:
        self._wake = None
        if self._starved and not self.broken:
            self._starved = False
            self._link.wake(1 - self._to)

    def _arrive(self) -> None:
        self._timer = None
        now = self._world.now
        if now < self.stalled_until:
            if self.stalled_until != float("inf"):
                self._timer = self._world.at(self.stalled_until, self._arrive)
            return
        parts, number = [], 0
        while self._flight and self._flight[0][0] <= now:
            _, number, part = self._flight.popleft()
            parts.append(part)
        data = b"".join(parts)
        if parts and not self._order.arrived(self._to, number):
            self._world.counts["arrived after what left later on another link"] += 1
        if len(data) > READ_SIZE:
            self._flight.appendleft((now, number, data[READ_SIZE:]))
            data = data[:READ_SIZE]
        self._waiting -= len(data)
        cut = self.cut_at is not None and self.carried + len(data) >= self.cut_at
        if cut:
            assert self.cut_at is not None
            data = data[: max(0, self.cut_at - self.carried)]
        self.carried += len(data)
        if self._flight and not cut:
            self._timer = self._world.at(max(now, self._flight[0][0]), self._arrive)
        self._deliver(data)
        if cut:
            self._link.cut("connection reset by peer")
        elif self._starved:
            self._room()

    def _deliver(self, data: bytes) -> None:
        if self.path.pieces and len(data) > 1 and self._random.random() < 0.3:
            at = self._random.randrange(1, len(data))
            self._link.hand(self._to, data[:at])
            self._link.hand(self._to, data[at:])
        elif data:
            self._link.hand(self._to, data)


class Link:
    """One connection between the agent (end 0) and the server (end 1). Owners may change while it lives."""

    def __init__(self, world: World, path: Path, random: Random, number: int, order: Order) -> None:
        self.number = number
        self.owners: list[Owner | None] = [None, None]
        self.marks: tuple[deque[Mark], deque[Mark]] = (deque(), deque())  # for whoever watches, by the end that reads
        self.ways = (
            Direction(world, path, random, self, 1, order=order),
            Direction(world, path, random, self, 0, order=order),
        )
        self.taken = [0, 0]  # bytes that each end's process has got round to
        self.over = False
        self.disturbed_at = world.now
        self.deaf: int | None = None  # the end whose process reads nothing, and does not mind
        self.told = [False, False]
        # How it breaks, when it does: what is on its way still arrives, and when each end is told (None: never).
        self.flush = [False, False]
        self.tell_after: list[float | None] = [0.0, 0.0]
        self._world = world

    @property
    def quiet_for(self) -> float:
        """Seconds since it was made, or something happened to it."""
        stalled = max(way.stalled_until for way in self.ways)
        return 0.0 if self.over else self._world.now - max(self.disturbed_at, stalled)

    def write(self, end: int, data: bytes) -> None:
        """Send `data` from that end."""
        self.ways[end].write(data)

    def writable(self, end: int) -> bool:
        """Whether that end may write."""
        return self.ways[end].writable

    def hand(self, end: int, data: bytes) -> None:
        """Bytes have arrived at that end."""
        owner = self.owners[end]
        if owner is not None and not self.told[end]:
            owner.link_received(self, data)

    def wake(self, end: int) -> None:
        """That end may write again."""
        owner = self.owners[end]
        if owner is not None and not self.told[end]:
            owner.link_writable(self)

    def cut(self, reason: str) -> None:
        """Break, in the way that was set."""
        if self.over:
            return
        self.over = True
        for end in (0, 1):
            self.ways[end].stop(flush=self.flush[end])
            after = self.tell_after[end]
            if after is not None:
                self._world.after(after, self._tell, end, reason)

    def close(self, end: int, reason: str) -> None:
        """One end lets go: what it wrote still arrives, then the other end learns of it."""
        self.told[end] = True
        self.owners[end] = None
        if self.over:
            return
        self.over = True
        way = self.ways[end]
        way.stop(flush=True)
        self.ways[1 - end].stop(flush=False)
        if way.stalled_until != float("inf"):
            rest = max(way._last, way.stalled_until, self._world.now)
            self._world.at(rest + 1e-3, self._tell, 1 - end, reason)

    def _tell(self, end: int, reason: str) -> None:
        if self.told[end]:
            return
        self.told[end] = True
        owner, self.owners[end] = self.owners[end], None
        if owner is not None:
            owner.link_lost(self, reason)
