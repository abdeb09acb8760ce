"""How each fault strikes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.constants import Code
from protocol.handshake import Resume
from tests.simulation.attempts import Attempt, Stranger
from tests.simulation.ends import End
from tests.simulation.network import Link
from tests.simulation.plan import OF_A_LINK, Fault, Trouble
from tests.simulation.processes import Agent, Process, Server

if TYPE_CHECKING:
    from tests.simulation.run import Simulation

FOR_EVER = float("inf")
TALKS_EVERY = 3.0


def strike(simulation: Simulation, trouble: Trouble) -> None:
    """Let it happen now."""
    match trouble.fault:
        case fault if fault in OF_A_LINK:
            link = _link(simulation, trouble)
            if link is not None and not link.over:
                simulation.world.counts["links struck"] += 1
                _strike_link(simulation, trouble, link)
        case Fault.STRANGER | Fault.BAD_RESUME:
            _ask_wrongly(simulation, trouble)
        case Fault.SUSPEND:
            _suspend(simulation, trouble)
        case Fault.RESTART_AGENT:
            _restart_agent(simulation, trouble)
        case Fault.RESTART_SERVER:
            _restart_server(simulation, trouble)
        case Fault.CLOCK:
            _process(simulation, trouble).jump(trouble.seconds)
        case Fault.CLOCK_BACK:
            seconds = min(60.0, trouble.seconds)
            simulation.set_back += seconds  # what a clock has shown before takes that much longer
            _process(simulation, trouble).jump(-seconds)
        case Fault.OUTAGE:
            simulation.outage_until = simulation.world.now + min(60.0, trouble.seconds)
        case Fault.BAD_DIAL:
            simulation.bad_dials = [(trouble.end, trouble.size % 900)] * (1 + int(3 * trouble.coin))
        case Fault.LATE_DIAL:
            link = _link(simulation, trouble)
            if link is not None and not link.over:
                simulation.late_dials.append(min(8.0, trouble.seconds))
                link.cut("connection reset by peer")
        case Fault.PRESSURE:
            budget = _process(simulation, trouble).budget
            size = int(budget.limit * trouble.coin)
            budget.charge(size)
            simulation.world.after(_until_healed(simulation, trouble.seconds), budget.give, size)
        case Fault.DRAIN_SERVER | Fault.DRAIN_AGENT:
            _drain(simulation, trouble)


def _until_healed(simulation: Simulation, seconds: float) -> float:
    return min(seconds, simulation.plan.heal_at - simulation.world.now)


def _process(simulation: Simulation, trouble: Trouble) -> Process:
    return simulation.server if trouble.end else simulation.agents[trouble.agent]


def _link(simulation: Simulation, trouble: Trouble) -> Link | None:
    agent, slot = simulation.agents[trouble.agent], _slot(simulation, trouble)
    end = agent.current(slot)
    if end is not None and end.link is not None:
        return end.link
    return agent.dialing(slot)


def _slot(simulation: Simulation, trouble: Trouble) -> int:
    return trouble.size % simulation.plan.links


def _strike_link(simulation: Simulation, trouble: Trouble, link: Link) -> None:
    way, back, now = link.ways[trouble.end], link.ways[1 - trouble.end], simulation.world.now
    match trouble.fault:
        case Fault.CUT | Fault.CUT_ONE_SIDED:
            link.flush = [trouble.coin < 0.3, 0.2 < trouble.coin < 0.5]
            link.tell_after = [0.3 * trouble.coin, 0.3 * (1 - trouble.coin)]
            if trouble.fault is Fault.CUT_ONE_SIDED:
                link.tell_after[trouble.end] = None
            way.cut_at = way.carried + trouble.size
        case Fault.VANISH:
            way.stalled_until = back.stalled_until = FOR_EVER
        case Fault.BLACK_HOLE:
            way.stalled_until = FOR_EVER
        case Fault.ONE_WAY:
            way.stalled_until = now + min(60.0, trouble.seconds)
        case Fault.STALL:
            way.stalled_until = back.stalled_until = now + min(60.0, trouble.seconds)
        case Fault.DEAF if link.deaf is None:
            link.deaf, link.disturbed_at = trouble.end, FOR_EVER
            _talk(simulation, link, trouble.end)
        case Fault.DETOUR:
            way.detour = back.detour = min(5.0, trouble.seconds)
        case Fault.ZOMBIE:
            give_up(link, now, min(25.0, trouble.seconds), told=trouble.coin >= 0.3)


def _talk(simulation: Simulation, link: Link, end: int) -> None:
    """Have that end write something every few seconds, so that it is not silent. It minds again what it does not hear
    once its peer has let go."""
    owner = link.owners[end]
    if not link.over:
        if isinstance(owner, End):
            owner.process.handle("io", owner.enter, lambda: owner.session.ping(owner.process.clock()))
        simulation.world.after(TALKS_EVERY, _talk, simulation, link, end)
    elif isinstance(owner, End):
        owner.arm(anew=True)


def give_up(link: Link, now: float, seconds: float, *, told: bool) -> None:
    """The agent takes the link for dead; what it has written still arrives, `seconds` late."""
    link.ways[0].stalled_until = now + seconds
    link.flush = [True, False]
    link.tell_after = [0.0, seconds + 1.0 if told else None]
    link.cut("the link was given up")


def _ask_wrongly(simulation: Simulation, trouble: Trouble) -> None:
    """A resume that the server must refuse, of a tunnel that lives."""
    agent = simulation.agents[trouble.agent]
    end = agent.current(_slot(simulation, trouble))
    theirs = None if end is None else simulation.server.held(end.tunnel, agent)
    if end is None or theirs is None:
        return
    received, epoch = end.session.frames_received, theirs.epoch + 1000
    if trouble.fault is Fault.STRANGER:
        other = Stranger(simulation, agent, same_cluster=trouble.coin < 0.5)
        Attempt(other, Resume(end.tunnel, epoch, received), {Code.UNKNOWN_TUNNEL}).begin()
        return
    codes = {Code.UNKNOWN_TUNNEL, Code.STALE_LINK, Code.POSITION}  # the tunnel may end or go on meanwhile
    if trouble.coin < 0.3:
        epoch = max(1, theirs.epoch - int(10 * trouble.coin))
    elif trouble.coin < 0.6 and theirs.session.frames_acked > 0:
        received = theirs.session.frames_acked - 1
    else:
        received = theirs.session.frames_sent + 10**6
    Attempt(agent, Resume(end.tunnel, epoch, received), codes).begin()


def _suspend(simulation: Simulation, trouble: Trouble) -> None:
    process = _process(simulation, trouble)
    process.suspend()
    for end in process.ends:
        if end.link is not None:
            end.link.disturbed_at = simulation.plan.heal_at  # what waits in a suspended process has not been heard
    seconds = _until_healed(simulation, trouble.seconds)
    simulation.world.after(seconds, process.go_on, "timer" if trouble.coin < 0.5 else "io")


def _restart_agent(simulation: Simulation, trouble: Trouble) -> None:
    old = simulation.agents[trouble.agent]
    if not old.dead:
        old.kill(told=trouble.coin < 0.7)
        new = simulation.agents[old.index] = Agent(simulation, old.index, old.number + 1)
        simulation.world.after(min(trouble.seconds, 10.0), new.want)


def _restart_server(simulation: Simulation, trouble: Trouble) -> None:
    old = simulation.server
    if not old.dead:
        old.kill(told=trouble.coin < 0.7)
        seconds = _until_healed(simulation, min(trouble.seconds, 10.0))
        simulation.world.after(seconds, _start_server, simulation, old.number + 1)


def _start_server(simulation: Simulation, number: int) -> None:
    simulation.server = Server(simulation, number)


def _drain(simulation: Simulation, trouble: Trouble) -> None:
    agent = simulation.agents[trouble.agent]
    process: Agent | Server = simulation.server if trouble.fault is Fault.DRAIN_SERVER else agent
    end = agent.current(_slot(simulation, trouble))
    if end is not None and process is simulation.server:
        end = simulation.server.held(end.tunnel, agent)
    if end is not None and not process.dead:
        process.handle("timer", process.drain, end, min(60.0, trouble.seconds), 2 * trouble.coin)
