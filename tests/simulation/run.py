"""One plan, played: the world is set up, wishes and faults happen, faults stop, and then everything has to end well."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from random import Random

from protocol import scheduler
from protocol.streams import Input, State
from tests.simulation.books import Books, Pair
from tests.simulation.faults import give_up, strike
from tests.simulation.network import Link, Order
from tests.simulation.plan import Call, Fault, Item, Plan, Trouble
from tests.simulation.processes import Agent, Process, Server
from tests.simulation.world import Violation, World, require

# How long the last stream may take to end once faults have stopped: a dead link is noticed, a tunnel is dialled or
# given up, and what was written flows at the link's speed.
NOTICE: float = 150.0
QUIET: float = 60.0
IDLE_EVENTS_PER_SECOND: float = 12.0  # of one idle tunnel, both ends and the network together
MOST_EVENTS: int = 400_000


@dataclass(slots=True)
class Result:
    """What a run came to."""

    seed: int
    trace_hash: str
    seconds: float  # simulated
    counts: Counter[str]
    faults: Counter[Fault]
    pairs: Counter[tuple[State, Input]]


class Simulation:
    """The world of one plan."""

    def __init__(self, plan: Plan, trace: list[str] | None = None) -> None:
        self.plan = plan
        self.world = World(trace)
        self.books = Books()
        self.pairs: Counter[tuple[State, Input]] = Counter()
        self.faults: Counter[Fault] = Counter()
        self.healed = False
        self.outage_until = 0.0
        self.bad_dials: list[tuple[int, int]] = []  # end and byte at which the next links are cut
        self.late_dials: list[float] = []  # seconds by which the next PROOFs are late
        self.links = 0
        self.set_back = 0.0  # seconds that clocks were, together
        self._orders = [Order() for _ in plan.homes]
        self._open_links: list[Link] = []
        self.random = Random(f"network {plan.seed}")
        self.server = Server(self, 0)
        self.agents = [Agent(self, index, 0) for index in range(plan.agents)]

    # ---- what processes ask --------------------------------------------------------------------------------------

    def connect(self, index: int) -> Link | None:
        """A link from an agent to the server; None while nothing gets through."""
        if self.world.now < self.outage_until or self.server.dead:
            return None
        self.links += 1
        random = Random(f"{self.plan.seed} link {self.links}")
        path = replace(self.plan.path, latency=self.plan.path.latency * random.choice(self.plan.nearer))
        link = Link(self.world, path, random, self.links, self._orders[index])
        if self.bad_dials:
            end, size = self.bad_dials.pop()
            link.ways[end].cut_at = size
        self._open_links = [each for each in self._open_links if not each.over] + [link]
        self.server.take(link)
        return link

    def proven(self, link: Link) -> None:
        """An agent has written its PROOF."""
        if self.late_dials:
            give_up(link, self.world.now, self.late_dials.pop(), told=True)

    # ---- a run ----------------------------------------------------------------------------------------------------

    def play(self) -> Result:
        """From the first dial to the last end. Violation when something does not hold."""
        # So that a few kilobytes show what is fair. As in the product, a frame is no larger than a quantum.
        scheduler.QUANTUM = scheduler.MAX_FRAME_PAYLOAD = self.plan.quantum  # type: ignore[misc]
        world, plan = self.world, self.plan
        for agent in self.agents:
            agent.want()
        for item in plan.items:
            world.at(item.at, self._happen, item)
        world.run(plan.heal_at, most_events=MOST_EVENTS)
        self._heal()
        self._settle()
        return Result(plan.seed, world.trace_hash, world.now, world.counts, self.faults, self.pairs)

    def _happen(self, item: Item) -> None:
        if isinstance(item.what, Trouble):
            self.faults[item.what.fault] += 1
            self.world.note(item.what.fault.name, item.what.agent)
            strike(self, item.what)
        else:
            self._call(item.what)

    def _call(self, call: Call) -> None:
        process: Process = self.server
        if call.by_agent:
            agent = next(agent for agent in self.agents if agent.home == call.cluster)
            process, end = agent, agent.current()
        else:
            end = self.server.pick(f"member-{call.cluster}", waits=call.waits)
        if end is None or process.dead:
            self.world.counts["not opened: no tunnel"] += 1
        else:
            process.handle("io", end.open, call)

    @property
    def processes(self) -> list[Process]:
        return [self.server, *self.agents]

    def opened(self, pair: Pair) -> None:
        """S13: where nothing goes wrong but what callers and members do, streams that stop, reset or are refused keep
        no other one from its end."""
        if not (self.plan.calm and pair.call.plain):
            return
        plan, path = self.plan, self.plan.path
        sizes = [side.writes for call in plan.calls for side in (call.opener, call.acceptor)]
        trip = 2 * (path.latency + path.jitter) + 0.02
        granted = 4 * max(pair.call.opener.writes, pair.call.acceptor.writes) / plan.limits.reserved_credit
        acknowledged = 4 * sum(sizes) / plan.limits.replay_bytes  # a quarter of a second apart, where there are few
        within = 5.0 + 2 * sum(sizes) / path.bandwidth + granted * trip + acknowledged * (trip + 0.25)
        self.world.after(within, self._in_time, pair, within)

    def _in_time(self, pair: Pair, within: float) -> None:
        for half in (pair.opener, pair.acceptor):
            ended = half is None or bool(half.outcome)
            require(ended, "S13 held up", "%s: has not ended within %.0f s", pair.where, within)
        if any(half.waiting and half.stopped and not half.outcome for _, half in self.books.halves()):
            self.world.counts["ended beside one that stands still"] += 1

    def _heal(self) -> None:
        self.healed = True
        self.outage_until = 0.0
        self.bad_dials.clear()
        self.late_dials.clear()
        for link in self._open_links:
            for way in link.ways:
                way.cut_at, way.detour = None, 0.0
        self.world.note("healed")
        for process in self.processes:
            for end in list(process.ends):
                if not end.over:
                    end.enter(end.heal)

    def _bound(self) -> float:
        """Seconds that the rest may take."""
        plan, path = self.plan, self.plan.path
        sizes = [side.writes for call in plan.calls for side in (call.opener, call.acceptor)]
        trips = max(sizes, default=0) / plan.limits.reserved_credit * 2
        return NOTICE + self.set_back + 3 * sum(sizes) / path.bandwidth + trips * 2 * (path.latency + path.jitter)

    def _settle(self) -> None:
        world, until = self.world, self.world.now + self._bound()
        settled = False
        while world.now < until and not settled:  # at two times: what a clock did shows later
            before = self._settled()
            world.run(world.now + (1.0 if before else 5.0), most_events=MOST_EVENTS)
            settled = before and self._settled()
        self.books.all_ended()
        if self.plan.gentle:
            for where, half in self.books.halves():
                require(half.outcome != "lost", "resume", "%s: lost to one cut: %s", where, half.reason)
        for agent in self.agents:
            require(self._well(agent), "L4 redial", "%s has no tunnel that works", agent.name)
        self._quiet()
        self._nothing_left()

    def _settled(self) -> bool:
        ended = all(half.outcome for _, half in self.books.halves())
        said = all(end.watch.all_acked for process in self.processes for end in process.ends)
        return ended and said and all(map(self._well, self.agents))

    def _well(self, agent: Agent) -> bool:
        """Whether both ends hold the same tunnels, as many as there should be, on links that carry."""
        for slot in range(self.plan.links):
            mine = agent.current(slot)
            theirs = None if mine is None else self.server.held(mine.tunnel, agent)
            if mine is None or theirs is None or mine.link is None or mine.link is not theirs.link:
                return False
            if theirs.session.draining or mine.link.over or mine.link.deaf is not None:
                return False
            if any(way.stalled_until > self.world.now for way in mine.link.ways):
                return False
        return True

    def _quiet(self) -> None:
        world, before = self.world, self.world.events
        world.run(world.now + QUIET, most_events=MOST_EVENTS)
        tunnels = sum(len(process.ends) for process in self.processes)
        most = IDLE_EVENTS_PER_SECOND * QUIET * max(1, tunnels)
        require(world.events - before <= most, "L6 idle", "%d events in a quiet minute", world.events - before)

    def _nothing_left(self) -> None:
        for process in self.processes:
            for end in process.ends:
                require(end.session.stream_count == 0, "L5 streams", "%s still holds streams", end.name)
                require(end.watch.all_acked, "L1 acked", "%s: frames that are never acknowledged", end.name)
                require(
                    end.session.budget.used == 0, "L5 memory", "%s holds %d bytes", end.name, end.session.budget.used
                )
            require(process.budget.used == 0, "L5 memory", "%s holds %d bytes", process.name, process.budget.used)
            require(
                process.shares.granted == 0,
                "S6 share",
                "%s: %d bytes stay granted",
                process.name,
                process.shares.granted,
            )


def play(plan: Plan, *, trace: list[str] | None = None) -> Result:
    """Play one plan; `trace` gets a line for each thing that happens. Whatever escapes is a Violation."""
    try:
        return Simulation(plan, trace).play()
    except Violation:
        raise
    except Exception as error:
        raise Violation(f"crash {type(error).__name__}", str(error)) from error
