"""A tunnel to a Go agent, with the face of a native one, so that ports, relay, hold and probes need not know.

A `kubernetes` stream ends in the gateway of this process and leaves it as channels to the apiserver; `kubesphere` is a
channel by itself. The control stream that every tunnel gets is answered here, in the agent's place: it reports the
services that the agent announced. A link that is silent is asked for a sign of life, and dropped when none comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, Final

from daemon.log import get_logger
from gateway.errors import UpstreamError
from gateway.proxy import Gateway
from protocol import defaults
from protocol.aio.opening import opened
from protocol.aio.pipe import PipeEnd, pipe
from protocol.aio.ssh import ServerConnection
from protocol.aio.sshchannel import Channel
from protocol.aio.sshlink import SshLink
from protocol.aio.tlspump import TlsServerPump
from protocol.aio.tunnel import Closed, StreamInfo
from protocol.constants import CONTROL_SERVICE, Code
from protocol.errors import StreamRefused, TunnelLost
from protocol.messages import encode_message
from tower_server.legacy.registration import Registration
from tower_server.records import KUBERNETES, KUBESPHERE

DIALECT: Final = "kubesphere-v1"
AGENT: Final = "go-tower"  # Go agents have no names
NO_SERIAL: Final = -1
CONFIRMED_WITHIN: Final = 0.9 * defaults.DIAL_DEADLINE  # seconds for a channel: the rest of a dial is the apiserver's

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LegacyPeer:
    """Where a native tunnel has a verified identity: nothing but the cluster whose token was known."""

    cluster: str
    agent: str = AGENT
    serial: int = NO_SERIAL
    not_after: float = float("inf")


class LegacyTunnel:
    """One registered agent. Owns its connection, its gateway and their ends."""

    dialect: Final = DIALECT
    renew_only: Final = False
    features: Final[frozenset[str]] = frozenset()
    detached: Final = False

    def __init__(
        self,
        *,
        tunnel_id: str,
        registration: Registration,
        wire: ServerConnection,
        link: SshLink,
        remote: str,
        gateway: Callable[[LegacyTunnel], Gateway],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.id = tunnel_id
        self.peer = LegacyPeer(registration.name)
        self.instance = f"{DIALECT}:{tunnel_id}"
        self.remote = remote
        self.software = f"Go Tower {registration.version}".strip()
        self.registration = registration
        self.opened_at = monotonic()
        self.closed: Closed | None = None
        self.draining = False
        self.rtt: float | None = None
        self.data: dict[str, Any] = {}
        self.on_closed: Callable[[Any, Closed], None] | None = None
        self.on_going_away: Callable[[Any, Any], None] | None = None
        self.on_gone: Callable[[LegacyTunnel], None] | None = None
        self.wire = wire
        self._liveness = wire.limits.credit
        self._link = link
        self._streams: dict[int, tuple[PipeEnd | Channel, str, str, str]] = {}
        self._tls: dict[int, TlsServerPump] = {}  # of the streams that end in the gateway
        self._next = 1
        self._waiters: list[asyncio.Future[Closed]] = []
        self._asked_at: float | None = None
        self._control: _AgentControl | None = None
        self.facts: Mapping[str, Any] = {}
        """What is known of the member: version, uid, nodes."""
        self.gateway = gateway(self)
        self.gateway.start()
        wire.owner = self
        self._timer = self.loop.call_later(self._liveness.ping_interval, self._tick)
        self._ask()

    def learned(self, facts: Mapping[str, Any]) -> None:
        """Reports what was found out of the member in the agent's place: each time, as a heartbeat does."""
        self.facts = facts
        if self._control is not None and self.closed is None:
            self._control.say()

    # ---- figures ------------------------------------------------------------------------------------------------

    @property
    def bytes_in(self) -> int:
        return self._link.bytes_in

    @property
    def bytes_out(self) -> int:
        return self._link.bytes_out

    @property
    def buffered(self) -> int:
        return self._link.get_write_buffer_size()

    @property
    def stream_count(self) -> int:
        return len(self._streams)

    @property
    def stalled(self) -> bool:
        """Whether the agent has owed an answer, or taken nothing, for so long that a stream had better go elsewhere."""
        owed = 0.0 if self._asked_at is None else monotonic() - self._asked_at
        return max(owed, self._link.blocked_for) >= max(defaults.STALL_AFTER, 4 * (self.rtt or 0.0))

    @property
    def silent(self) -> bool:
        """Whether it stalls and nothing has come from the agent meanwhile."""
        return self.stalled and self.loop.time() - self._link.heard_at >= defaults.STALL_AFTER

    def streams(self) -> list[StreamInfo]:
        return [
            StreamInfo(number, service, caller, connection, end.opened_at, end.bytes_in, end.bytes_out)
            for number, (end, service, caller, connection) in self._streams.items()
        ]

    # ---- streams ------------------------------------------------------------------------------------------------

    def start_open(
        self, service: str, protocol: asyncio.BaseProtocol, *, caller: str = "", connection_id: str = ""
    ) -> PipeEnd | Channel:
        """As with a native tunnel. StreamRefused: nothing was opened."""
        if self.closed is not None:
            raise StreamRefused(Code.TUNNEL_LOST, "the tunnel is over")
        if self.draining:
            raise StreamRefused(Code.DRAINING, "the tunnel takes no new streams")
        if len(self._streams) >= defaults.MAX_STREAMS:
            raise StreamRefused(Code.TOO_MANY, f"{defaults.MAX_STREAMS} streams are open in this tunnel")
        number = self._next
        self._next += 1

        late: asyncio.TimerHandle | None = None

        def gone() -> None:
            self._streams.pop(number, None)
            self._tls.pop(number, None)
            if late is not None:
                late.cancel()

        end: PipeEnd | Channel
        if service == KUBERNETES:
            tls = self._tls[number] = self.gateway.serve(caller_address=caller, connection_id=connection_id)
            end = self._to(tls, protocol, gone)
        elif service == KUBESPHERE and self.registration.kubesphere is not None:
            if full := self._full():
                raise StreamRefused(Code.BUDGET, full)
            self._ask_if_silent()
            end = self.wire.open(str(self.registration.kubesphere), protocol)
            end.on_lost = gone
            late = self.loop.call_later(self.wire.limits.credit.open_deadline, end.give_up)
        elif service == CONTROL_SERVICE:
            self._control = _AgentControl(self)
            end = self._to(self._control, protocol, gone)
        else:
            raise StreamRefused(Code.UNKNOWN_SERVICE, f"the agent announced no service {service!r}")
        self._streams[number] = end, service, caller, connection_id
        protocol.connection_made(end)
        return end

    def _to(self, far: Any, near: asyncio.BaseProtocol, gone: Callable[[], None]) -> PipeEnd:
        one, two = pipe(near, far, on_lost=gone)
        far.connection_made(two)
        accepted = getattr(near, "stream_accepted", None)
        if accepted is not None:  # also where it ends in this turn, if the gateway has begun TLS: no other may begin it
            self.loop.call_soon(lambda: None if one.is_closing() and not one.bytes_in else accepted())
        return one

    def _full(self) -> str:
        """Why no other channel is opened; empty where there is room. Of one that nobody waits for any more the number
        stays taken until the agent has answered."""
        limits = self.wire.limits
        if not limits.room():
            return "no memory is left for another channel; `memory.tunnel` and `memory.process` bound it"
        if self.wire.channel_count >= limits.most:
            return f"{limits.most} channels of this tunnel are open, or have not been answered"
        return ""

    async def open(
        self,
        service: str,
        protocol: asyncio.BaseProtocol,
        *,
        caller: str = "",
        connection_id: str = "",
        deadline: float = defaults.DIAL_DEADLINE,
    ) -> PipeEnd | Channel:
        """As with a native tunnel: StreamRefused, TunnelLost, TimeoutError."""
        start = partial(self.start_open, service, caller=caller, connection_id=connection_id)
        return await opened(start, protocol, deadline=deadline)

    async def connect(self, factory: Callable[[], Any]) -> tuple[Any, Any]:
        """A channel to the apiserver for the gateway's pools; OSError when there is none to be had, UpstreamError when
        nothing comes from the agent meanwhile: who speaks, and does not confirm the channel, is dialling still."""
        # Its end is on its way, and tells callers better than that the apiserver is unreachable.
        if not self.wire.alive:
            await self.wait_closed()
        if self.closed is not None:
            raise ConnectionError("the tunnel is over")
        if full := self._full():
            raise ConnectionError(full)
        self._ask_if_silent()

        def start(answered: asyncio.BaseProtocol) -> Channel:
            channel = self.wire.open(str(self.registration.kubernetes), answered)
            answered.connection_made(channel)
            return channel

        protocol, began = factory(), self.loop.time()
        sign_of_life = self.loop.call_later(defaults.STALL_AFTER, self._ask)
        try:
            return await opened(start, protocol, deadline=CONFIRMED_WITHIN), protocol
        except TimeoutError:
            if self._link.heard_at >= began:
                raise
            raise UpstreamError("TWR222", f"the agent has not answered for {CONFIRMED_WITHIN:g} s") from None
        except (StreamRefused, TunnelLost) as error:
            if not self.wire.alive:
                await self.wait_closed()
            raise ConnectionError(error.text) from error
        finally:
            sign_of_life.cancel()

    # ---- what the agent sends -----------------------------------------------------------------------------------

    def ssh_ready(self) -> None:
        """It was, before there was a tunnel."""

    def ssh_request(self, name: str, payload: bytes, answer: Callable[[bool, bytes], None]) -> None:
        if name == "config":
            answer(False, b"config was sent already")
            self._end(Code.PROTOCOL, "the agent sent config twice", by_peer=False)
        else:
            answer(name == "ping", b"")

    def ssh_opened(self, channel: Channel, target: bytes) -> None:
        channel.refuse(1, "this end takes no channels")

    def ssh_lost(self, reason: str) -> None:
        self._end(Code.TUNNEL_LOST, reason, by_peer=True)

    # ---- life ---------------------------------------------------------------------------------------------------

    async def ping(self, deadline: float = defaults.DIAL_DEADLINE) -> float:
        """A round trip, seconds. TunnelLost, TimeoutError. Go agents answer with a refusal, which is a sign of life."""
        began = monotonic()
        try:
            async with asyncio.timeout(deadline):
                await self.wire.request("ping")
        except ConnectionError as error:
            raise TunnelLost(Code.TUNNEL_LOST, str(error)) from error
        return monotonic() - began

    def _ask(self) -> None:
        if self._asked_at is not None:
            return
        try:
            answer = self.wire.ask("ping")
        except ConnectionError:
            return  # its end is on its way
        self._asked_at = monotonic()
        answer.add_done_callback(self._answered)

    def _ask_if_silent(self) -> None:
        """Before something is sent that only the agent can answer: whether it still does shows within a second."""
        if self.loop.time() - self._link.heard_at >= defaults.STALL_AFTER:
            self._ask()

    def _answered(self, answer: asyncio.Future[tuple[bool, bytes]]) -> None:
        asked, self._asked_at = self._asked_at, None
        if not answer.cancelled() and answer.exception() is None and asked is not None:
            measured = monotonic() - asked
            self.rtt = measured if self.rtt is None else min(measured, 0.875 * self.rtt + 0.125 * measured)

    def _tick(self) -> None:
        limits, silent = self._liveness, self.loop.time() - self._link.heard_at
        if silent >= limits.dead_after:
            self._end(Code.DEAD_PEER, f"nothing heard from the agent for {silent:.0f} s", by_peer=False)
            return
        if silent >= limits.ping_interval:
            self._ask()
        self._timer = self.loop.call_later(min(limits.ping_interval / 2, limits.dead_after - silent), self._tick)

    # ---- the end ------------------------------------------------------------------------------------------------

    def drain(self, code: Code, text: str, *, deadline: float, retry_after: float) -> None:
        """Takes no new streams. A Go agent cannot be told; it comes back when the link ends."""
        self.draining = True
        self.gateway.drain()

    def close(self, code: Code, text: str) -> None:
        """Idempotent."""
        self._end(code, text, by_peer=False)

    async def wait_closed(self) -> Closed:
        if self.closed is not None:
            return self.closed
        waiter: asyncio.Future[Closed] = self.loop.create_future()
        self._waiters.append(waiter)
        return await waiter

    def _end(self, code: Code, text: str, *, by_peer: bool) -> None:
        if self.closed is not None:
            return
        self.closed = Closed(code, text, by_peer, monotonic())
        self._timer.cancel()
        self.gateway.cut("TWR201", f"the tunnel ended before the apiserver had answered: {text}")
        if not by_peer:
            self.wire.bye(text[:200])
        self.wire.end(text)
        for number, (end, _, _, _) in list(self._streams.items()):
            if isinstance(end, PipeEnd):
                tls = self._tls.get(number)
                if tls is not None and not tls.established:  # the gateway answers once it is
                    self.loop.call_later(defaults.HANDSHAKE_DEADLINE, self._end_stream, end)
                else:
                    self._end_stream(end)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(self.closed)
        if self.on_closed is not None:
            self.on_closed(self, self.closed)
        if self.on_gone is not None:
            self.on_gone(self)

    def _end_stream(self, end: PipeEnd) -> None:
        assert self.closed is not None
        if end.heard_all:  # its caller was answered, and would lose that by a reset
            end.close()
        else:
            end.cut(TunnelLost(self.closed.code, self.closed.text))


class _AgentControl(asyncio.Protocol):
    """The far end of the control stream: says what the agent announced and what is found out of its member, and takes
    what the server says."""

    def __init__(self, tunnel: LegacyTunnel) -> None:
        self._tunnel = tunnel
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.say()

    def say(self) -> None:
        announced, transport = self._tunnel.registration, self._transport
        services: dict[str, Any] = {KUBERNETES: {"mode": "gateway"}}
        if announced.kubesphere is not None:
            services[KUBESPHERE] = {"address": str(announced.kubesphere)}
        line = encode_message("status", **self._tunnel.facts, services=services, agent_version=self._tunnel.software)
        asyncio.get_running_loop().call_soon(lambda: None if transport.is_closing() else transport.write(line))

    def eof_received(self) -> bool:
        return True
