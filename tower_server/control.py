"""The control stream: what server and agent tell each other beside callers' bytes, as lines of JSON.

The server opens it in every tunnel and at once sends the revocation list; it sends each newer one as it comes, and now
and then the same one signed again. From the agent come its heartbeats and requests to renew. A tunnel without a control
stream could not be told of a revocation, so it is closed when the stream ends. At most one renewal of a tunnel is under
way, and those of a cluster have a rate: each is two signatures, a write, and a line of the log. No task and no buffer
otherwise.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Coroutine, Mapping
from time import monotonic
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

from certs.errors import CertsError
from certs.keys import MAX_CSR_BYTES, MAX_SIGNATURE_BYTES
from daemon.faults import TowerError
from daemon.log import get_logger
from daemon.metrics import ServerMetrics
from protocol.aio.stream import StreamTransport
from protocol.aio.tunnel import Tunnel
from protocol.constants import CONTROL_SERVICE, Code
from protocol.errors import StreamRefused
from protocol.messages import Message, MessageReader, encode_message
from tower_server import kubesphere
from tower_server.agents import Agents
from tower_server.bucket import Bucket
from tower_server.faultof import certs_fault
from tower_server.member import Member, is_legacy
from tower_server.report import cleaned
from tower_server.revocations import Revocations
from tower_server.rotation import Rotation
from tower_server.tunnels import TunnelRegistry

MAX_ID: Final = 64
RENEWAL_RATE: Final = 1.0  # a second, for all agents of one cluster: one of them renews every few days
RENEWAL_BURST: Final = 64
REPORT_RATE: Final = 2.0  # a second, of one tunnel; the next heartbeat says what one that is left out would have
REPORT_BURST: Final = 64
Start = Callable[[Coroutine[Any, Any, None], str], object]

log = get_logger(__name__)


class Control:
    """All control streams.

    `start(work, name)` owns the tasks of renewals; `declared` is called when a member offers other services, `suspect`
    when an agent begins to say that its apiserver is not well, and `names(cluster)` gives what its serving certificate
    carries beside the member's name.
    """

    def __init__(
        self,
        *,
        registry: TunnelRegistry,
        agents: Agents,
        revocations: Revocations,
        metrics: ServerMetrics,
        rotation: Rotation,
        start: Start,
        declared: Callable[[Member], object],
        suspect: Callable[[str, Tunnel], object],
        names: Callable[[str], tuple[str, ...]],
        host: str = "",
    ) -> None:
        self.agents = agents
        self.rotation = rotation
        self.metrics = metrics
        self.start = start
        self.declared = declared
        self.suspect = suspect
        self.names = names
        self.host = host
        self.kubesphere: Callable[[], str] = str
        """The `jwtSecret` of the host's KubeSphere, which members' are compared with; empty for none."""
        self._registry = registry
        self._revocations = revocations
        self._renewals: WeakKeyDictionary[Member, Bucket] = WeakKeyDictionary()
        registry.subscribe(self.attach)
        revocations.subscribe(self.revoked)
        rotation.subscribe(self.rotated)

    def attach(self, member: Member, tunnel: Tunnel) -> None:
        """Opens the control stream of a new tunnel."""
        stream = ControlStream(self, member, tunnel)
        tunnel.data["control"] = stream
        try:
            tunnel.start_open(CONTROL_SERVICE, stream)
        except StreamRefused as error:
            tunnel.close(Code.PROTOCOL, f"the control stream cannot be opened: {error.text}")
            return
        if self.rotation.number > 1:  # the CA was rotated: the agent may have enrolled before that
            stream.send(self.rotation.line())
        stream.send_names()
        stream.send_revocations()

    def may_renew(self, member: Member) -> bool:
        """Whether another renewal by this cluster's agents is processed now; those beyond the rate are not logged."""
        now = asyncio.get_running_loop().time()
        bucket = self._renewals.get(member)
        if bucket is None:
            bucket = self._renewals[member] = Bucket(rate=RENEWAL_RATE, burst=RENEWAL_BURST, now=now)
        if bucket.take(now) is None:
            return True
        self.metrics.throttled.labels("renewals").inc()
        return False

    def renamed(self, cluster: str) -> None:
        """Callers may reach a cluster by other names now: its agents renew, if their certificates lack one."""
        member = self._registry.members.get(cluster)
        for tunnel in member.tunnels if member is not None else ():
            control = tunnel.data.get("control")
            if isinstance(control, ControlStream):
                control.send_names()

    def rotated(self) -> None:
        """Tells every agent at once what to trust from now on."""
        for _, tunnel in self._registry:
            control = tunnel.data.get("control")
            if isinstance(control, ControlStream):
                control.send(self.rotation.line())

    def revocations_line(self) -> bytes:
        return encode_message("revocations", list=base64.b64encode(self._revocations.signed).decode())

    def revoked(self) -> None:
        """The list has changed, or was signed again: sends it to every agent."""
        for _, tunnel in self._registry:
            control = tunnel.data.get("control")
            if isinstance(control, ControlStream):
                control.send_revocations()


class ControlStream(asyncio.Protocol):
    """The server's end of one."""

    __slots__ = (
        "_control",
        "_full",
        "_member",
        "_named",
        "_outdated",
        "_reader",
        "_renewing",
        "_reports",
        "_transport",
        "_tunnel",
    )

    def __init__(self, control: Control, member: Member, tunnel: Tunnel) -> None:
        self._control = control
        self._member = member
        self._tunnel = tunnel
        self._reader = MessageReader()
        self._transport: StreamTransport | None = None
        self._full = False
        self._outdated = False
        self._renewing = False
        self._reports = Bucket(rate=REPORT_RATE, burst=REPORT_BURST, now=monotonic())
        self._named: tuple[str, ...] = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("StreamTransport", transport)

    def send_revocations(self) -> None:
        """Sends the list in force. An agent that does not read gets it later, and only the newest."""
        if self._full:
            self._outdated = True
        elif self._transport is not None:
            self._transport.write(self._control.revocations_line())

    def send_names(self) -> None:
        """What the serving certificate is to carry, where that is another than what was said last."""
        names = self._control.names(self._member.name)
        if names != self._named:
            self._named = names
            self.send(encode_message("names", names=list(names)))

    def send(self, line: bytes) -> None:
        """Sends one line. For an agent that does not read it waits: there are few such lines."""
        if self._transport is not None:
            self._transport.write(line)

    def pause_writing(self) -> None:
        self._full = True
        if self._transport is not None:  # who does not read its answers asks for no more of them
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._full = False
        if self._transport is not None:
            self._transport.resume_reading()
        if self._outdated:
            self._outdated = False
            self.send_revocations()

    def data_received(self, data: bytes) -> None:
        # What is no line of JSON is raised to the tunnel, which is closed for it.
        for message in self._reader.feed(data):
            match message["type"]:
                case "status":
                    self._status(message)
                case "renew":
                    self._renew(message)

    def _status(self, message: Message) -> None:
        if self._tunnel.renew_only:
            return  # its identity has expired: it may renew, and say nothing about the member
        if self._reports.take(monotonic()) is not None:
            self._control.metrics.throttled.labels("reports").inc()
            return
        report = cleaned({key: value for key, value in message.items() if key not in ("type", kubesphere.KEY)})
        self._compare(report, message.get(kubesphere.KEY))
        before = self._member.report.get("services")
        if _unwell(report) and not _unwell(self._tunnel.data.get("report", {})):
            self._control.suspect(self._member.name, self._tunnel)
        self._tunnel.data["report"] = report
        self._member.reported(report)
        self._believes(report.get("trust"))
        if report.get("services") != before:
            self._control.declared(self._member)

    def _compare(self, report: dict[str, Any], said: object) -> None:
        """Asks about the member's KubeSphere, if the host has one, and judges the agent's answer."""
        secret = self._control.kubesphere()
        if is_legacy(self._tunnel) or not kubesphere.in_play(secret, report):
            return  # a Go agent knows no such question
        question = self._tunnel.data.get(kubesphere.KEY)
        if question is None:
            question = self._tunnel.data[kubesphere.KEY] = kubesphere.Question()
            self.send(encode_message("compare", nonce=question.text))
        report[kubesphere.KEY] = kubesphere.compared(
            secret, said, question, host=self._control.host, cluster=self._member.name
        )

    def _believes(self, said: object) -> None:
        """The agent reports which CA it trusts: noted on its record, once for each step of a rotation."""
        rotation = self._control.rotation
        if rotation.number <= 1 or said != rotation.trust or self._tunnel.data.get("trust") == said:
            return
        self._tunnel.data["trust"] = said
        self._control.start(self._note_trust(rotation.number), f"trust-{self._tunnel.id}")

    async def _note_trust(self, number: int) -> None:
        peer = self._tunnel.peer
        try:
            await self._control.agents.believes(peer.cluster, peer.agent, number)
        except TowerError as error:
            self._tunnel.data.pop("trust", None)  # its next heartbeat says so again
            log.warning("trust-not-noted", cluster=peer.cluster, agent=peer.agent, code=error.code, text=error.message)

    def _renew(self, message: Message) -> None:
        if not self._control.may_renew(self._member):
            if isinstance(asked := message.get("id"), str):
                text = f"the agents of this cluster ask to renew more than {RENEWAL_RATE:g} times a second"
                self._write("refused", id=asked[:MAX_ID], code="TWR504", text=text, mend="look at the agents' logs")
            return
        asked = message.get("id")
        if not isinstance(asked, str) or len(asked) > MAX_ID:
            log.warning("renewal-malformed", cluster=self._member.name, agent=self._tunnel.peer.agent)
            return
        if self._renewing:
            self._refuse(asked, TowerError("TWR504", "a renewal of this tunnel is under way already"))
            return
        csr, serving_csr, proof = message.get("csr"), message.get("serving_csr"), _proof(message.get("proof"))
        if not _is_csr(csr) or not _is_csr(serving_csr) or proof is None:
            self._refuse(asked, TowerError("TWR505", "csr and serving_csr must be PEM texts, proof base64"))
            return
        self._renewing = True
        work = self._renewed(asked, csr=str(csr).encode(), serving_csr=str(serving_csr).encode(), proof=proof)
        self._control.start(work, f"renewal-{self._tunnel.id}")

    async def _renewed(self, asked: str, *, csr: bytes, serving_csr: bytes, proof: bytes) -> None:
        peer, metrics = self._tunnel.peer, self._control.metrics
        try:
            certificates = await self._control.agents.renew(peer, csr=csr, serving_csr=serving_csr, proof=proof)
        except CertsError as error:
            self._refuse(asked, certs_fault(error))
        except TowerError as error:
            self._refuse(asked, error)
        else:
            metrics.certificate_renewals.labels("agent", "ok").inc()
            log.info("renewed", cluster=peer.cluster, agent=peer.agent, expires=certificates.identity_expires)
            self._write("renewed", id=asked, chain=certificates.chain, serving_chain=certificates.serving_chain)
        finally:
            self._renewing = False

    def _refuse(self, asked: str, error: TowerError) -> None:
        error.about(self._member.name)
        self._control.metrics.certificate_renewals.labels("agent", "refused").inc()
        log.warning(
            "renewal-refused",
            cluster=self._member.name,
            agent=self._tunnel.peer.agent,
            code=error.code,
            text=error.message,
        )
        self._write("refused", id=asked, code=error.code, text=error.message, mend=error.mend)

    def _write(self, kind: str, **fields: object) -> None:
        if self._transport is not None:
            self._transport.write(encode_message(kind, **fields))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._tunnel.closed is None:
            why = f": {exc}" if exc is not None else ""
            self._tunnel.close(Code.PROTOCOL, f"the agent ended the control stream{why}")


def _unwell(report: Mapping[str, Any]) -> bool:
    probe = report.get("probe")
    return isinstance(probe, Mapping) and probe.get("ready") is False


def _is_csr(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_CSR_BYTES and value.isascii()


def _proof(value: object) -> bytes | None:
    if not isinstance(value, str) or len(value) > 2 * MAX_SIGNATURE_BYTES:
        return None
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        return None
