"""The connections at a port that have not yet proven who they are: how many there are, when no more are accepted, and
which one goes when all places are taken.

In a storm of agents, a port that accepted all of them would have them all in their handshakes at once, and none would
be done in time. So `room` makes whoever accepts wait while enough handshakes are under way. Agents that are not
accepted yet wait in the kernel's backlog; nobody is turned away without a word.

This must not let anybody keep others out by connecting and saying nothing. So `room` counts only connections that are
young, and none from networks that are known for wasting their places; and it waits only while agents do prove
themselves, or for the first second, in which they may yet.

When all places are taken, the network that holds most of them gives one up: its oldest connection that has been silent
for long. Where it has none, its oldest goes for a newcomer from a network with fewer places; any other newcomer is
refused. So silence keeps out nobody, not even a neighbour.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Final, Protocol

UNDER_WAY: Final = 64  # handshakes at a time: the work of half a second, where a core does about a hundred a second
YOUNG: Final = 2.0  # seconds; who takes longer is not waited for, and who has said nothing by then goes first
PROVEN: Final = 8  # so many proofs within `YOUNG` seconds show that agents come in, so that the wait is worth it
BEGINNING: Final = 1.0  # seconds, in which the first of many may prove themselves
GOOD_NAME: Final = 16  # up to which good ends of a network's connections, or bad ones, are counted
MAX_NETWORKS: Final = 1024  # whose names are remembered


class Stranger(Protocol):
    """A connection that has proven nothing yet."""

    @property
    def silent(self) -> bool:
        """Whether nothing but TLS has come of it."""

    def give_way(self) -> None:
        """Leave at once."""

    def abort(self, reason: str) -> None:
        """The same, without a word."""


@dataclass(frozen=True, slots=True)
class _Place:
    network: str
    since: float


@dataclass(slots=True)
class Strangers:
    """At most `most` of them. `clock`: seconds, monotonic."""

    most: int
    clock: Callable[[], float]
    _places: dict[Stranger, _Place] = field(default_factory=dict)  # oldest first
    _held: Counter[str] = field(default_factory=Counter)
    _names: dict[str, int] = field(default_factory=dict)  # good ends less bad ones; the one that changed last is last
    _proofs: deque[float] = field(default_factory=lambda: deque(maxlen=PROVEN))
    _full_since: float = -inf
    _last_full: float = -inf
    _left: asyncio.Event = field(default_factory=asyncio.Event)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def busy(self) -> bool:
        """Whether whoever enters has many before it."""
        return len(self._places) >= UNDER_WAY // 2

    def all(self) -> list[Stranger]:
        """Those who wait now, oldest first."""
        return list(self._places)

    async def room(self) -> None:
        """Wait while enough of them are under way. It ends by itself: they leave, or are young no more."""
        while (left := self._full_for()) > 0:
            self._left.clear()
            try:
                async with asyncio.timeout(left):
                    await self._left.wait()
            except TimeoutError:
                pass  # they are young no more

    def enter(self, stranger: Stranger, network: str) -> bool:
        """Give it a place; False when there is none for it."""
        if len(self._places) >= self.most:
            going = self._goes(network)
            if going is None:
                return False
            going.give_way()
        self._places[stranger] = _Place(network, self.clock())
        self._held[network] += 1
        return True

    def leave(self, stranger: Stranger, *, proven: bool = False) -> None:
        """It has proven who it is, was answered, or went. Idempotent."""
        place = self._places.pop(stranger, None)
        if place is None:
            return
        self._held[place.network] -= 1
        if not self._held[place.network]:
            del self._held[place.network]
        if proven:
            self._proofs.append(self.clock())
            self._name(place.network, 1)
        elif stranger.silent:
            self._name(place.network, -1)
        self._left.set()

    def _name(self, network: str, weight: int) -> None:
        name = self._names.pop(network, 0) + weight
        if len(self._names) >= MAX_NETWORKS:
            del self._names[next(iter(self._names))]
        self._names[network] = max(-GOOD_NAME, min(GOOD_NAME, name))

    def _full_for(self) -> float:
        """Seconds after which there is room in any case; 0 when there is now."""
        now = self.clock()
        under_way = 0
        for place in reversed(self._places.values()):
            if now - place.since >= YOUNG:
                break
            under_way += self._names.get(place.network, 0) >= 0
            if under_way >= UNDER_WAY:
                return max(0.0, min(place.since + YOUNG, self._waits_until(now)) - now)
        return 0.0

    def _waits_until(self, now: float) -> float:
        """Until when many that are under way are waited for."""
        if now - self._last_full > YOUNG:
            self._full_since = now
        self._last_full = now
        proven = self._proofs[0] + YOUNG if len(self._proofs) == PROVEN else -inf
        return max(proven, self._full_since + BEGINNING)

    def _goes(self, network: str) -> Stranger | None:
        """Who makes room for one from `network`."""
        greedy, most = self._held.most_common(1)[0]
        theirs = [(each, place.since) for each, place in self._places.items() if place.network == greedy]
        old = self.clock() - YOUNG
        silent = next((each for each, since in theirs if since <= old and each.silent), None)
        if silent is not None or self._held[network] + 1 >= most:
            return silent
        return theirs[0][0]
