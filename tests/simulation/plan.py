"""What happens in one run, drawn from a seed before it begins: a world, wishes of callers, faults.

Each seed draws a world of its own (how fast, how far, how much memory, which faults and how often), so that rare
meetings become likely in some. Any item can be left out, which is how a failing run is shrunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from random import Random
from typing import Any, Final

from protocol.flow import Limits
from tests.simulation.network import Path


class Fault(Enum):
    """What can go wrong. Each has to be drawn by the fixed seeds at least once."""

    CUT = "a link cut at some byte, both ends told"
    CUT_ONE_SIDED = "a link cut at some byte, one end not told"
    VANISH = "a link that carries nothing any more, nobody told"
    ONE_WAY = "one direction silent for a while"
    BLACK_HOLE = "one direction silent for ever"
    STALL = "both directions silent for a while"
    DEAF = "a process that writes on a link and reads nothing of it"
    ZOMBIE = "a link that the agent has given up, whose bytes still arrive"
    SUSPEND = "a process suspended"
    RESTART_AGENT = "an agent killed and started again"
    RESTART_SERVER = "the server killed and started again"
    CLOCK = "a process' clock that jumps ahead"
    CLOCK_BACK = "a process' clock that jumps back"
    DETOUR = "a link that takes a longer way, so that others overtake it"
    STRANGER = "somebody else who asks to go on with an agent's tunnel"
    BAD_RESUME = "an agent that asks to go on where it cannot have been, or with an older link"
    OUTAGE = "no new links for a while"
    BAD_DIAL = "the next links cut at one of their first bytes"
    LATE_DIAL = "a link cut, and its successor given up while the last message of its handshake is still on its way"
    PRESSURE = "a process' memory taken by others for a while"
    DRAIN_SERVER = "GOAWAY from the server"
    DRAIN_AGENT = "GOAWAY from the agent"


OF_A_LINK: Final = frozenset(
    {
        Fault.CUT,
        Fault.CUT_ONE_SIDED,
        Fault.VANISH,
        Fault.ONE_WAY,
        Fault.BLACK_HOLE,
        Fault.STALL,
        Fault.DEAF,
        Fault.ZOMBIE,
        Fault.DETOUR,
    }
)


class Answer(Enum):
    """What the other end says to an OPEN."""

    ACCEPT = "OPEN_OK"
    REFUSE = "OPEN_ERR"
    RESET = "RST"


class Ending(Enum):
    """What a writer does after its last byte."""

    FINISH = "finish"
    CLOSE = "finish, read on and throw away, reset with NONE once all has left"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Side:
    """What one end of a stream does. Bytes, seconds."""

    writes: int
    chunk: int
    pause: float  # between chunks
    ending: Ending
    reads: int  # bytes a second; 0: as they come
    stops_after: int  # bytes, at which it stops reading ...
    stops_for: float  # ... for so long


@dataclass(frozen=True, slots=True)
class Call:
    """A stream that is opened to a cluster, and all that becomes of it unless a fault does."""

    cluster: int
    opener: Side
    acceptor: Side
    answer_after: float
    answer: Answer
    cancel_after: float | None
    waits: bool  # for a tunnel that has no link now, where there is one
    by_agent: bool  # an agent asks, which the server refuses

    @property
    def plain(self) -> bool:
        """Whether both ends write at once, read as it comes, and wait for nothing."""
        sides = (self.opener, self.acceptor)
        return (
            self.answer is Answer.ACCEPT
            and not self.answer_after
            and self.cancel_after is None
            and not self.by_agent
            and all(s.ending is Ending.FINISH and not (s.pause or s.reads or s.stops_for) for s in sides)
        )


@dataclass(frozen=True, slots=True)
class Trouble:
    """A fault. What the numbers mean is the fault's."""

    fault: Fault
    agent: int
    end: int
    seconds: float
    size: int
    coin: float


@dataclass(frozen=True, slots=True)
class Item:
    """Something that happens at a time."""

    at: float
    what: Call | Trouble


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole run."""

    seed: int
    homes: tuple[int, ...]  # of each agent, its cluster
    links: int  # tunnels of each agent
    limits: Limits
    process_budget: int
    path: Path
    nearer: tuple[float, ...]  # parts of the path's latency, of which each link has one
    heal_at: float
    pull: int
    quantum: int
    rates: tuple[float, ...]  # of each process' clock, the server's first
    items: tuple[Item, ...] = field(repr=False)

    @property
    def agents(self) -> int:
        """How many there are."""
        return len(self.homes)

    @property
    def calls(self) -> list[Call]:
        """All wishes of callers."""
        return [item.what for item in self.items if isinstance(item.what, Call)]

    @property
    def calm(self) -> bool:
        """Whether nothing goes wrong but what callers and members do themselves."""
        return not any(isinstance(item.what, Trouble) for item in self.items)

    @property
    def gentle(self) -> bool:
        """Whether one link at most is struck and nothing else happens: no tunnel may be lost to that."""
        faults = [item.what.fault for item in self.items if isinstance(item.what, Trouble)]
        return len(faults) <= 1 and self.path.latency <= 0.3 and all(fault in OF_A_LINK for fault in faults)

    def keep(self, numbers: list[int]) -> Plan:
        """The same with these items only."""
        return replace(self, items=tuple(self.items[n] for n in numbers))


PLAIN: Final[dict[str, Any]] = {"pause": 0.0, "ending": Ending.FINISH, "reads": 0, "stops_for": 0.0}
SMALL = {"initial_credit": 4096, "reserved_credit": 1024, "max_credit": 32768, "send_high": 6144, "send_low": 2048}
ROOMY = {"initial_credit": 65536, "reserved_credit": 16384, "max_credit": 262144, "send_high": 98304, "send_low": 32768}


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    random = Random(f"plan {seed}")
    small = random.random() < 0.7
    size = SMALL if small else ROOMY
    scale = size["initial_credit"]
    limits = Limits(
        **size,
        tunnel_budget=scale * random.choice((6, 12, 40)),
        max_streams=random.choice((6, 40)),
        open_backlog=random.choice((3, 16)),
        replay_bytes=scale * random.choice((2, 9, 40)),
    )
    path = Path(
        latency=random.choice((0.0005, 0.01, 0.05, 0.3, 1.5)),
        jitter=random.choice((0.0, 0.001, 0.1)),
        bandwidth=scale * random.choice((2.0, 20.0, 400.0)),
        room=scale * random.choice((1, 4)),
        pieces=random.random() < 0.8,
    )
    homes = random.choice(((0,), (0,), (0, 1), (0, 0), (0, 1, 2), (0, 0, 1), (0, 0, 0)))
    agents = len(homes)
    links = random.choice((1, 1, 1, 2, 3))
    nearer = random.choice(((1.0,), (1.0, 0.2), (1.0, 0.5, 0.05)))
    heal_at = random.choice((60.0, 180.0, 400.0))
    items = [
        Item(round(at, 3), _call(random, max(homes) + 1, scale))
        for at in _times(random, heal_at, random.randint(3, 16))
    ]
    # Mostly a few kinds of fault, each often; sometimes everything.
    kinds = random.sample(list(Fault), random.choice((1, 2, 3, len(Fault))))
    struck = _times(random, heal_at, random.choice((0, 1, 2, 5, 9)))
    items += [Item(round(at, 3), _trouble(random, agents, kinds, scale)) for at in struck]
    items.sort(key=lambda item: item.at)
    return Plan(
        seed,
        homes,
        links,
        limits,
        scale * random.choice((10, 60)),
        path,
        nearer,
        heal_at,
        random.choice((scale // 4, scale * 2, scale * 16)),
        scale // 4,
        tuple(random.choice((1.0, 1.0, 0.98, 1.03)) for _ in range(agents + 1)),
        tuple(items),
    )


def _times(random: Random, until: float, count: int) -> list[float]:
    """Some in a bunch, some anywhere."""
    bunch = random.random() * until * 0.8
    times = [random.choice((bunch + random.expovariate(0.5), random.random() * until)) for _ in range(count)]
    return [min(at, until - 1.0) for at in times]


def _call(random: Random, clusters: int, scale: int) -> Call:
    if random.random() < 0.3:  # one that nothing holds up but others
        opener, acceptor = (replace(_side(random, scale), **PLAIN) for _ in range(2))
        return Call(random.randrange(clusters), opener, acceptor, 0.0, Answer.ACCEPT, None, waits=False, by_agent=False)
    return Call(
        random.randrange(clusters),
        _side(random, scale),
        _side(random, scale),
        random.choice((0.0, 0.0, 0.1, 2.0, 30.0)),
        random.choices(list(Answer), (16, 2, 1))[0],
        random.choice((None, None, None, None, 0.0, 0.5, 5.0, 40.0)),
        random.random() < 0.3,
        random.random() < 0.06,
    )


def _side(random: Random, scale: int) -> Side:
    ending = random.choices(list(Ending), (6, 3, 1))[0]
    return Side(
        random.choice((0, 1, scale // 4, scale, scale * 4, scale * 12)),
        random.choice((scale // 16, scale // 2, scale * 2)),
        random.choice((0.0, 0.0, 0.05, 3.0)),
        ending,
        random.choice((0, 0, 0, scale, scale * 10)),
        random.choice((0, scale // 2, scale * 2)),
        random.choice((0.0, 0.0, 0.0, 5.0, 50.0)),
    )


def _trouble(random: Random, agents: int, kinds: list[Fault], scale: int) -> Trouble:
    return Trouble(
        random.choice(kinds),
        random.randrange(agents),
        random.randrange(2),
        random.choice((0.5, 3.0, 10.0, 14.0, 25.0, 60.0, 300.0)),
        random.choice((0, 1, random.randrange(40), random.randrange(scale), random.randrange(scale * 4))),
        random.random(),
    )
