"""The server and the agents as processes: clocks of their own, links that they dial and take, tunnels that they hold.

They do what `protocol.aio.dial` and `protocol.aio.listener` do with the real handshake; signatures are stood in for.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, Final, Protocol

from daemon.backoff import Backoff
from protocol import events
from protocol.constants import FEATURE_ACK, FEATURE_RESUME, Code, FrameType
from protocol.defaults import HANDSHAKE_DEADLINE, MAX_HANDSHAKE_BYTES
from protocol.errors import HandshakeRejected, RemoteProtocolError
from protocol.flow import Budget
from protocol.frames import FrameDecoder
from protocol.handshake import AgentHandshake, Resume, ServerHandshake, Welcome, parse_reject, reject
from protocol.session import DEAF, Session
from tests.protocol.handshakes import Identity, signer, verifier
from tests.simulation.cluster import Cluster, Face, as_identity, as_tunnel, from_tunnel, verify_agent
from tests.simulation.ends import End, nothing
from tests.simulation.network import Link
from tests.simulation.wire import Bounds, Shares, Watch
from tests.simulation.world import Timer, Violation, require
from tower_server.member import DETACHED
from tower_server.tunnels import TunnelRegistry

if TYPE_CHECKING:
    from tests.simulation.run import Simulation

FEATURES: Final = frozenset({FEATURE_ACK, FEATURE_RESUME})
AGENT_KEY: Final = b"agents"
SERVER_KEY: Final = b"servers"
FOR_EVER: Final = 2**62
LATE: Final = 0.05  # seconds after its time that something may happen in a process that runs
HEARD_WITHIN: Final = 20.0  # on a link to which nothing happens, what an end says is known to its peer


class Process:
    """A clock, a memory budget, and whatever runs under them. A restarted process is another one."""

    def __init__(self, simulation: Simulation, name: str, rate: float) -> None:
        plan = simulation.plan
        self.simulation = simulation
        self.world = simulation.world
        self.name = name
        self.rate = rate
        self.random = Random(f"{plan.seed} {name}")
        self.budget = Budget(plan.process_budget)
        self.shares = Shares(name, plan.process_budget)
        self.dead = False
        self.ends: list[End] = []
        self.disturbed_at = float("-inf")  # on its clock: when it last ran on after a pause, or that clock jumped
        self._ahead = 1000.0 * self.random.random()
        self._held: list[tuple[str, Callable[..., None], tuple[Any, ...]]] | None = None

    # ---- its clock ----------------------------------------------------------------------------------------------

    def clock(self) -> float:
        """Seconds, monotonic."""
        return self._ahead + self.rate * self.world.now

    def when(self, due: float) -> float:
        """The world's time when this clock shows `due`."""
        return (due - self._ahead) / self.rate

    def later(self, seconds: float, call: Callable[..., None], *args: Any) -> Timer:
        """A timer of this process."""
        return self.world.after(seconds / self.rate, self.handle, "timer", call, *args)

    def jump(self, seconds: float) -> None:
        """The clock jumps ahead."""
        self._ahead += seconds
        self.disturbed_at = self.clock()
        for end in self.ends:
            end.arm(anew=True)

    # ---- its being -----------------------------------------------------------------------------------------------

    def handle(self, kind: str, call: Callable[..., None], *args: Any) -> None:
        """What the loop would do next: at once, or when the process runs again."""
        if self.dead:
            return
        if self._held is None:
            call(*args)
        else:
            self._held.append((kind, call, args))

    def suspend(self) -> None:
        """Stop. The world goes on."""
        if self._held is None:
            self._held = []

    def go_on(self, first: str) -> None:
        """Run again: timers or bytes first."""
        held, self._held = self._held or [], None
        self.disturbed_at = self.clock()
        for part in (True, False):
            for kind, call, args in held:
                if (kind == first) is part and not self.dead:
                    call(*args)

    def kill(self, *, told: bool) -> list[Link]:
        """End without a word; the links that it leaves behind."""
        self.dead = True
        links = []
        for end in self.ends:
            if not end.over:
                if end.link is not None:
                    links.append(end.link)
                end.kill()
        self.ends.clear()
        for link in links:
            link.tell_after = [0.05 if told else None] * 2
            link.cut("connection reset by peer")
        return links

    # ---- what ends of tunnels tell ------------------------------------------------------------------------------

    def make_end(self, name: str, *, opens_odd: bool, features: frozenset[str], side: int) -> End:
        """One end of a new tunnel."""
        limits = self.simulation.plan.limits
        session = Session(
            opens_odd=opens_odd,
            accepts=not opens_odd,
            limits=limits,
            budget=self.budget,
            now=self.clock(),
            features=features,
        )
        shares = Shares(name, limits.tunnel_budget)
        kept = limits.replay_bytes if FEATURE_RESUME in features else FOR_EVER
        bounds = Bounds(limits.max_credit, limits.reserved_credit, kept, self.simulation.plan.quantum)
        watch = Watch(self.world, name, shares, self.shares, bounds)
        end = End(self, name, session, watch, side)
        self.ends.append(end)
        return end

    def detached(self, end: End, event: events.LinkLost) -> None:
        """A tunnel has lost its link and keeps its streams."""
        self.world.counts["links lost: " + event.code.name] += 1
        if event.code is Code.DEAD_PEER:
            self._check_death(end, event.text)
        self.drop_link(end, event.text)

    def drop_link(self, end: End, reason: str) -> None:
        """Let go of a link."""
        link, end.link = end.link, None
        if link is not None:
            link.close(end.side, reason)

    def lost(self, end: End, event: events.TunnelLost) -> None:
        """A tunnel is over: say the last words and let go."""
        if end.link is not None:
            end.link.write(end.side, b"".join(end.session.data_to_send(self.clock(), 65536)))
        if event.code is Code.DEAD_PEER and not end.session.resumable:
            self._check_death(end, event.text)
        if end.detached_at is not None and event.code in (Code.TUNNEL_LOST, Code.DEAD_PEER):
            waited, window = self.clock() - end.detached_at, end.session.limits.resume_window
            require(waited >= window - 1e-3, "L3 early", "%s: given up after %.3f s without a link", end.name, waited)
            late = end.detached_at >= self.disturbed_at and waited > window + LATE
            require(not late, "L3 late", "%s: given up after %.3f s without a link", end.name, waited)
        self.drop_link(end, event.text)
        end.let_go()
        self.ends.remove(end)

    def _check_death(self, end: End, text: str) -> None:
        since = owed = end.heard_at
        after = end.session.limits.dead_after
        if "answered nothing" in text:
            since, after = end.answered_at, DEAF * after
            owed = since if end.asked_at is None else max(since, end.asked_at)  # less by a clock set back
            self.world.counts["peers that answered nothing"] += 1
        silent = self.clock() - since
        require(silent >= after - 1e-3, "L2 early", "%s: dead after %.3f s of silence", end.name, silent)
        silent = self.clock() - owed
        late = owed >= self.disturbed_at and silent > after + LATE
        require(not late, "L2 late", "%s: dead after %.3f s of silence", end.name, silent)

    def going_away(self, end: End, event: events.GoingAway) -> None:
        """The peer drains."""

    def drain(self, end: End, deadline: float, retry_after: float) -> None:
        """Take no new streams on a tunnel, and end it at the deadline."""
        end.enter(_go_away, end, deadline, retry_after)
        if end.drain_timer is None and not end.over:
            end.drain_timer = self.later(deadline, self._drained, end, deadline)

    def _drained(self, end: End, after: float) -> None:
        """The deadline: on a link that was well for a while, the peer must have heard of it."""
        link = end.link
        peer = None if link is None else link.owners[1 - end.side]
        if link is not None and isinstance(peer, End) and min(after, link.quiet_for) >= HEARD_WITHIN:
            require(peer.session.peer_draining, "S10 GOAWAY", "%s: its peer never heard that it drains", end.name)
        end.enter(_close, end, Code.SHUTDOWN, "the time to drain is over")


def _go_away(end: End, deadline: float, retry_after: float) -> None:
    end.session.go_away(Code.SHUTDOWN, "restarting", deadline=deadline, retry_after=retry_after)


def _close(end: End, code: Code, text: str) -> None:
    end.session.close(code, text)
    end.dispatch(end.session.take_events())


class Server(Process):
    """The tower server."""

    def __init__(self, simulation: Simulation, number: int) -> None:
        super().__init__(simulation, f"server-{number}", simulation.plan.rates[0])
        self.number = number
        self.made = 0
        self.registry = TunnelRegistry()

    def take(self, link: Link) -> None:
        """A new link."""
        Greeting(self, link)

    def admit(self, end: End, identity: Identity) -> None:
        """A new tunnel."""
        self.registry.members.setdefault(identity.cluster, Cluster()).tunnels.append(as_tunnel(Face(end, identity)))

    def held(self, tunnel: str, agent: Agent) -> End | None:
        """The tunnel of that name, if it is this agent's."""
        face: Any = self.registry.find(tunnel, as_identity(agent.identity))
        return None if face is None else face.end

    def pick(self, cluster: str, *, waits: bool) -> End | None:
        """Where the next stream of a cluster goes; `waits`: rather to a tunnel that has lost its link."""
        member = self.registry.members.get(cluster)
        faces: list[Face] = [] if member is None else [from_tunnel(each) for each in member.tunnels]
        lost = [face.end for face in faces if DETACHED in face.data and not face.draining]
        if waits and lost:
            return lost[-1]
        picked = None if member is None else member.pick()
        if picked is None:
            return None
        chosen = from_tunnel(picked)
        require(not (chosen.draining or DETACHED in chosen.data), "L7 choice", "%s: takes no streams", chosen.end.name)
        well = [face for face in faces if not (face.draining or face.stalled)]
        least = min((len(face.end.live) for face in well), default=0)
        fits = not well or (not chosen.stalled and len(chosen.end.live) <= least)
        require(fits, "L7 choice", "%s: %d streams, another %d", chosen.end.name, len(chosen.end.live), least)
        if len(faces) > 1:
            self.world.counts["chosen among several"] += 1
            self.world.counts["chosen beside one that stalls"] += any(face.stalled for face in faces) and bool(well)
        return chosen.end

    def lost(self, end: End, event: events.TunnelLost) -> None:
        super().lost(end, event)
        for member in self.registry.members.values():
            member.tunnels[:] = [each for each in member.tunnels if from_tunnel(each).end is not end]


class Greeting:
    """The server's end of a link before WELCOME."""

    def __init__(self, server: Server, link: Link) -> None:
        self._server = server
        self._link = link
        self._frames = FrameDecoder(MAX_HANDSHAKE_BYTES)
        self._done = False
        nonce = server.random.randbytes(32)
        self._handshake = ServerHandshake(
            chain=[b"tower"], sign=signer(SERVER_KEY), verify=verify_agent, nonce=nonce, features=FEATURES
        )
        self._since = server.world.now
        self._timer = server.later(HANDSHAKE_DEADLINE, self._give_up)
        link.owners[1] = self

    def link_received(self, link: Link, data: bytes) -> None:
        self._server.handle("io", self._received, data)

    def link_writable(self, link: Link) -> None:
        """Nothing waits here."""

    def link_lost(self, link: Link, reason: str) -> None:
        self._timer.cancel()
        self._done = True

    def _give_up(self) -> None:
        if not self._done:
            self._done = True
            self._link.write(1, reject(Code.TIMEOUT, "no handshake in time"))
            self._link.close(1, "no handshake in time")

    def _received(self, data: bytes) -> None:
        self._link.taken[1] += len(data)
        if self._done:
            return
        try:
            for kind, _flags, _stream, payload in self._frames.feed(memoryview(data)):
                self._frame(kind, bytes(payload))
        except (HandshakeRejected, RemoteProtocolError) as error:
            self._done = True
            self._timer.cancel()
            self._link.write(1, reject(error.code, error.text, getattr(error, "retry_after", None)))
            self._link.close(1, error.text)

    def _frame(self, kind: int, payload: bytes) -> None:
        require(not self._done, "protocol", "an agent sends after PROOF and before WELCOME")
        if self._handshake.hello is None:
            self._link.write(1, self._handshake.greeted(payload))
            return
        identity = self._handshake.proven(payload)
        self._done = True
        self._timer.cancel()
        if self._handshake.resume is not None:
            self._resume(self._handshake.resume, identity)
        else:
            self._server.registry.check_order(identity, self._handshake.hello.instance, self._since)
            self._welcome(self._handshake.hello.instance, identity)

    def _resume(self, wanted: Resume, identity: Identity) -> None:
        server, link = self._server, self._link
        face: Any = server.registry.find(wanted.tunnel, as_identity(identity))
        if face is None or face.end.over:
            server.world.counts["resumes of others' tunnels or of none"] += 1
            raise HandshakeRejected(Code.UNKNOWN_TUNNEL, "no such tunnel")
        end: End = face.end
        same = (face.identity.cluster, face.identity.agent) == (identity.cluster, identity.agent)
        require(same, "S11 identity", "%s: %s of %s asks for it", end.name, identity.agent, identity.cluster)
        before = end.snapshot()
        try:
            end.session.check_attach(wanted.received, wanted.epoch)
        except HandshakeRejected:
            require(end.snapshot() == before, "S11 refused", "%s: a refused resume has changed it", end.name)
            raise
        require(wanted.epoch > end.epoch, "S4 fence", "%s: link %d after %d", end.name, wanted.epoch, end.epoch)
        end.epoch = wanted.epoch
        end.session.detach(server.clock(), "a newer link took its place")
        end.dispatch(end.session.take_events())
        link.write(1, self._handshake.welcome(wanted.tunnel, received=end.session.frames_received))
        end.attach(link, wanted.received)
        end.session.attach(server.clock(), wanted.received, epoch=wanted.epoch)
        server.world.counts["resumes"] += 1
        server.world.note("resumed " + end.name, wanted.received, end.session.frames_received)
        end.enter(nothing)
        end.arm(anew=True)

    def _welcome(self, instance: str, identity: Identity) -> None:
        server, link = self._server, self._link
        server.made += 1
        tunnel = f"{server.name}.{server.made}"
        link.write(1, self._handshake.welcome(tunnel))
        name = f"S/{tunnel}/{identity.cluster}/{identity.agent}"
        end = server.make_end(name, opens_odd=True, features=self._handshake.features, side=1)
        end.instance, end.tunnel = instance, tunnel
        server.admit(end, identity)
        server.world.counts["tunnels"] += 1
        for older in [other for other in server.ends if other.instance == end.instance and other is not end]:
            if not older.session.peer_draining and not older.session.draining:
                older.enter(_close, older, Code.REPLACED, "the same agent process opened a newer tunnel")
        end.attach(link)
        end.enter(nothing)


class Agent(Process):
    """One agent process."""

    def __init__(self, simulation: Simulation, index: int, number: int) -> None:
        super().__init__(simulation, f"agent-{index}.{number}", simulation.plan.rates[index + 1])
        self.index = index
        self.number = number
        self.home = simulation.plan.homes[index]
        self.identity = Identity(f"member-{self.home}", f"agent-{index}")
        self.fresh = [Way(self, None, slot) for slot in range(simulation.plan.links)]
        self.ways: dict[End, Way] = {}

    def instance(self, slot: int) -> str:
        """What a tunnel of this process says it is of."""
        return f"pod-{self.index}-{self.number}" + (f".{slot}" if slot else "")

    def current(self, slot: int | None = None) -> End | None:
        """The tunnel that takes streams; of several the newest."""
        for end in reversed(self.ends):
            if slot in (None, end.slot) and not (end.session.draining or end.session.peer_draining):
                return end
        return None

    def dialing(self, slot: int) -> Link | None:
        """A link that is about to carry a tunnel."""
        for way in (*self.fresh, *self.ways.values()):
            if way.slot == slot and way.dialing is not None:
                return way.dialing.link
        return None

    def want(self, retry_after: float | None = None) -> None:
        """Have as many tunnels that take streams as there should be."""
        for way in self.fresh:
            if self.current(way.slot) is None:
                way.want(retry_after)

    def detached(self, end: End, event: events.LinkLost) -> None:
        super().detached(end, event)
        self.ways.setdefault(end, Way(self, end, end.slot)).want()

    def lost(self, end: End, event: events.TunnelLost) -> None:
        super().lost(end, event)
        way = self.ways.pop(end, None)
        if way is not None:
            way.stop()
        self.want()

    def going_away(self, end: End, event: events.GoingAway) -> None:
        self.want(event.retry_after)

    def drain(self, end: End, deadline: float, retry_after: float) -> None:
        super().drain(end, deadline, retry_after)
        self.want()

    def kill(self, *, told: bool) -> list[Link]:
        links = super().kill(told=told)
        for way in (*self.fresh, *self.ways.values()):
            if way.dialing is not None:
                way.dialing.link.cut("connection reset by peer")
        return links


class Way:
    """Dials until a tunnel has a link: a certain one that lost its own, or a fresh one."""

    def __init__(self, agent: Agent, end: End | None, slot: int) -> None:
        self.agent = agent
        self.end = end
        self.slot = slot
        self.dialing: Dialing | None = None
        self.epoch = 1
        self._backoff = Backoff(random=agent.random.random)
        self._timer: Timer | None = None

    def want(self, retry_after: float | None = None) -> None:
        """Dial after a back-off, unless that is under way."""
        if self._timer is None and self.dialing is None and not self.agent.dead:
            self._timer = self.agent.later(self._backoff.next(retry_after=retry_after), self._dial)

    def stop(self) -> None:
        """Nobody wants it any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.dialing is not None:
            self.dialing.stop()
            self.dialing = None

    @property
    def _needed(self) -> bool:
        end = self.end
        return self.agent.current(self.slot) is None if end is None else not end.over and end.link is None

    def _dial(self) -> None:
        agent, self._timer = self.agent, None
        if not self._needed:
            return
        link = agent.simulation.connect(agent.index)
        if link is None:
            agent.world.counts["dials refused"] += 1
            self.want()
            return
        resume = None
        if self.end is not None:
            self.epoch += 1
            resume = Resume(self.end.tunnel, self.epoch, self.end.session.frames_received)
        self.dialing = Dialing(self, link, resume)

    def failed(self, retry_after: float | None = None) -> None:
        """A dial came to nothing."""
        self.dialing = None
        self.agent.world.counts["dials failed"] += 1
        if self._needed:
            self.want(retry_after)

    def refused(self, error: HandshakeRejected) -> None:
        """The server says no."""
        if self.end is not None and error.code in (Code.UNKNOWN_TUNNEL, Code.STALE_LINK, Code.POSITION):
            self.dialing = None
            self.agent.world.counts["resumes refused: " + error.code.name] += 1
            self.end.enter(self.end.session.lose, error.code, error.text)
        else:
            self.failed(error.retry_after)

    def welcomed(self, link: Link, welcome: Welcome) -> End:
        """A dial has made a tunnel, or gone on with one."""
        agent, end = self.agent, self.end
        self.dialing = None
        self._backoff.reset()
        if end is None:
            name = f"A/{welcome.tunnel}/{agent.identity.cluster}/{agent.identity.agent}"
            end = agent.make_end(name, opens_odd=False, features=welcome.features, side=0)
            end.tunnel, end.slot = welcome.tunnel, self.slot
            end.attach(link)
            return end
        assert welcome.received is not None
        peer = link.owners[1]
        same = not isinstance(peer, End) or (peer.tunnel, peer.instance) == (end.tunnel, agent.instance(self.slot))
        require(same, "S11 tunnel", "%s: the server goes on with another tunnel", end.name)
        end.attach(link, welcome.received)
        end.session.attach(agent.clock(), welcome.received, epoch=self.epoch)
        agent.world.note("resumed " + end.name, welcome.received, end.session.frames_received)
        end.arm(anew=True)
        return end


class Wanting(Protocol):
    """Whoever a dial is for."""

    @property
    def agent(self) -> Agent: ...
    @property
    def slot(self) -> int: ...
    def failed(self, retry_after: float | None = None) -> None: ...
    def refused(self, error: HandshakeRejected) -> None: ...
    def welcomed(self, link: Link, welcome: Welcome) -> End: ...


class Dialing:
    """The agent's end of a link before WELCOME."""

    def __init__(self, way: Wanting, link: Link, resume: Resume | None) -> None:
        self.link = link
        self._way = way
        self._agent = agent = way.agent
        self._frames = FrameDecoder(MAX_HANDSHAKE_BYTES)
        self._done = False
        self._proven = False
        self._handshake = AgentHandshake(
            cluster=agent.identity.cluster,
            instance=agent.instance(way.slot),
            chain=[f"{agent.identity.cluster}/{agent.identity.agent}".encode()],
            sign=signer(AGENT_KEY),
            verify=verifier(SERVER_KEY),
            nonce=agent.random.randbytes(32),
            features=FEATURES,
        )
        if resume is not None:
            self._handshake.resume = resume
            self._handshake.needs = FEATURES
        self._timer = agent.later(HANDSHAKE_DEADLINE, self._fail)
        link.owners[0] = self
        link.write(0, self._handshake.hello())

    def link_received(self, link: Link, data: bytes) -> None:
        self._agent.handle("io", self._received, data)

    def link_writable(self, link: Link) -> None:
        """Nothing waits here."""

    def link_lost(self, link: Link, reason: str) -> None:
        self._agent.handle("io", self._fail)

    def stop(self) -> None:
        """Give it up."""
        self._done = True
        self._timer.cancel()
        self.link.close(0, "the dial was given up")

    def _fail(self) -> None:
        if not self._done:
            self.stop()
            self._way.failed()

    def _received(self, data: bytes) -> None:
        if self._done:  # what came while the process was suspended, in pieces, is for whoever has the link now
            owner = self.link.owners[0]
            if isinstance(owner, End):
                owner.link_received(self.link, data)
            return
        self.link.taken[0] += len(data)
        try:
            for kind, _flags, _stream, payload in self._frames.feed(memoryview(data)):
                if self._proven or kind == FrameType.REJECT:
                    self._answered(kind, bytes(payload), data[self._frames.taken :])
                    return
                self._proven = True
                self.link.write(0, self._handshake.challenged(bytes(payload)))
                self._agent.simulation.proven(self.link)
        except HandshakeRejected as error:
            if not error.by_peer:
                raise Violation("protocol", f"{self._agent.name}: an honest handshake failed: {error}") from error
            self.stop()
            self._way.refused(error)

    def _answered(self, kind: int, payload: bytes, rest: bytes) -> None:
        if kind == FrameType.REJECT:
            raise parse_reject(payload)
        welcome = self._handshake.answered(kind, payload)
        self._done = True
        self._timer.cancel()
        end = self._way.welcomed(self.link, welcome)
        if rest:
            self.link.taken[0] -= len(rest)
            end.link_received(self.link, rest)
        end.enter(nothing)
