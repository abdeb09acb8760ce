"""Spreads agents over the servers of the host again after one was added: nothing else would ever move them.

Now and then a server compares its number of tunnels with those of the others. One that has clearly more than its share
asks a few agents (by GOAWAY) to dial again; whatever balances the way in sends most of them to other servers. No caller
is cut for it: only a tunnel whose cluster has another one is moved, at most one of a cluster at a time, and the agent
opens the new tunnel before the old one ends, whose streams have a minute. While servers come and go nobody is moved.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from daemon.log import get_logger
from protocol.constants import SUBPROTOCOL, Code
from tower_server.member import Member
from tower_server.tunnels import TunnelRegistry

EVERY: Final = 30.0  # seconds between two looks, give or take a half, so that servers do not act at the same time
SLACK: Final = 0.1  # of its share that a server may have more: chance alone makes such a difference
AT_ONCE: Final = 0.1  # of its tunnels that it lets go at a look
MOST_AT_ONCE: Final = 50
DEADLINE: Final = 60.0  # for the streams of a tunnel that was asked to move
SPREAD: Final = 5.0  # seconds over which those that were asked dial again

log = get_logger(__name__)


def surplus(mine: int, others: Sequence[int]) -> int:
    """How many of its tunnels a server should let go now, by what each of the others holds."""
    if not others:
        return 0
    share = math.ceil((mine + sum(others)) / (1 + len(others)))
    more = mine - share
    if more <= max(1, math.ceil(SLACK * share)):
        return 0
    return min(more, max(1, int(AT_ONCE * mine)), MOST_AT_ONCE)


class Balance:
    """`run` it as a task. `others()` gives the tunnels of each other server by its name, of those that take callers;
    `ready()` says whether this one does."""

    def __init__(
        self, registry: TunnelRegistry, *, others: Callable[[], dict[str, int]], ready: Callable[[], bool]
    ) -> None:
        self._registry = registry
        self._others = others
        self._ready = ready
        self._seen: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(EVERY * (0.5 + random.random()))  # noqa: S311
            self.look()

    def look(self) -> int:
        """Asks agents to move if it must be; how many."""
        others = self._others()
        settled, self._seen = self._seen == frozenset(others), frozenset(others)
        if not settled or not self._ready():
            return 0
        mine = sum(len(member.serving) for member in self._registry.members.values())
        wanted = surplus(mine, list(others.values()))
        moved = 0
        for member, tunnel in self._movable() if wanted else ():
            if moved == wanted:
                break
            tunnel.drain(
                Code.DRAINING,
                "agents are spread over the servers of this host",
                deadline=DEADLINE,
                retry_after=random.random() * SPREAD,  # noqa: S311
            )
            log.info("tunnel-asked-to-move", cluster=member.name, tunnel=tunnel.id, agent=tunnel.peer.agent)
            moved += 1
        if moved:
            log.info("rebalancing", tunnels=mine, others=others, moved=moved)
        return moved

    def _movable(self) -> Iterator[tuple[Member, Any]]:
        """One tunnel each of the clusters that have another: first where most stand at this server, and of those the
        least used."""
        found = []
        for member in self._registry.members.values():
            here = [each for each in member.serving if each.dialect == SUBPROTOCOL]
            if here and member.tunnels_of_host > 1:
                tunnel = min(here, key=lambda each: each.stream_count)
                found.append((-len(here), tunnel.stream_count, random.random(), member, tunnel))  # noqa: S311
        for *_, member, tunnel in sorted(found, key=lambda each: each[:3]):
            yield member, tunnel
