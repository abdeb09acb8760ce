"""The replica port: where the other servers of the host follow this one and pass callers on to it.

Nobody gets past the TLS handshake without a certificate of the host, nor further without one of a replica. Then one
head, bounded in size and time, says what is wanted. Connections that have not said it are bounded in number.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any, Final, Protocol

from certs.errors import Untrusted
from daemon.faults import cannot_listen
from daemon.log import get_logger
from protocol import defaults
from protocol.aio.tlsfailure import TlsError
from protocol.aio.tlspump import TlsServerSocketPump
from protocol.errors import ProtocolError
from tower_server.member import Member
from tower_server.relay import address_text
from tower_server.replicas.asking import Answer, Asked
from tower_server.replicas.carrying import MAX_CARRIED, Carried
from tower_server.replicas.identity import ReplicaCertificate
from tower_server.replicas.passed import Passed
from tower_server.replicas.wire import MAX_HEAD_BYTES, Asking, Carrying, Held, alive, holds, lost, read_head, refused
from tower_server.sockets import listening_socket

BACKLOG: Final = 1024
MAX_IN_HANDSHAKE: Final = 512  # of TLS: who says nothing gives way, so that it keeps out neither replicas nor agents
MAX_UNASKED: Final = 512  # connections that have not yet said what they want: a burst of callers passed on
MAX_FOLLOWERS: Final = 64
MAX_ASKED: Final = 64
REFUSALS_SAID_EVERY: Final = 10.0

log = get_logger(__name__)


class Host(Protocol):
    """What the port asks of the server that it belongs to."""

    @property
    def ready(self) -> bool:
        """Whether this server takes callers."""

    def held(self) -> dict[str, Held]:
        """The clusters whose tunnels it holds."""

    def member(self, cluster: str) -> Member | None: ...

    def link(self, remote: str) -> Any:
        """A new link of its tunnel port, for an agent that another server carries here."""

    @property
    def answer(self) -> Answer:
        """To another server's questions."""


class ReplicaPort:
    """`start`, then `tell` whenever something may have changed and once a second, then `stop`."""

    def __init__(self, host: Host, certificate: ReplicaCertificate) -> None:
        self.host = host
        self.certificate = certificate
        self.address: tuple[str, int] = ("", 0)
        self.in_handshake: dict[TlsServerSocketPump, None] = {}  # oldest first
        self.unasked: set[_Arrival] = set()
        self.followers: set[_Follower] = set()
        self.passed: set[Passed] = set()
        self.asked: set[Asked] = set()
        self.carried: set[Carried] = set()
        self._server: asyncio.Server | None = None
        self._refused_said = float("-inf")

    async def start(self, host: str, port: int) -> None:
        """TowerError TWR103 when the address cannot be listened on."""
        try:
            sock = listening_socket(host, port, backlog=BACKLOG)
            self._server = await asyncio.get_running_loop().create_server(self._connection, sock=sock)
        except OSError as error:
            raise cannot_listen(f"the replica port {host}:{port}", error, key="replica.listen") from error
        self.address = sock.getsockname()[:2]

    def _connection(self) -> TlsServerSocketPump:
        def arrived() -> _Arrival:
            self.in_handshake.pop(pump, None)
            return _Arrival(self)

        def failed(error: TlsError) -> None:
            self.in_handshake.pop(pump, None)
            self.refuse("unknown", str(error))

        pump = TlsServerSocketPump(self.certificate.called, arrived, on_failure=failed)
        if len(self.in_handshake) >= MAX_IN_HANDSHAKE:
            oldest = next(iter(self.in_handshake))
            del self.in_handshake[oldest]
            oldest.abort()
        self.in_handshake[pump] = None
        return pump

    def refuse(self, remote: str, text: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._refused_said >= REFUSALS_SAID_EVERY:  # strangers write these lines, at no cost of theirs
            self._refused_said = now
            log.warning("replica-refused", remote=remote, text=text)

    def tell(self) -> None:
        """What is held now, to those that follow."""
        if self.followers:
            held = self.host.held()
            for follower in list(self.followers):
                follower.tell(held)

    def _connections(self) -> Iterable[Iterable[Any]]:
        return (self.unasked, self.followers, self.passed, self.asked, self.carried)

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for transport in [*self.in_handshake, *(each.transport for held in self._connections() for each in held)]:
            transport.abort()


class _Arrival(asyncio.Protocol):
    """Until it is known who calls and what for."""

    def __init__(self, port: ReplicaPort) -> None:
        self._port = port
        self._line = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        port, self.transport = self._port, transport
        self.remote = address_text(transport.get_extra_info("peername"))
        if len(port.unasked) >= MAX_UNASKED:
            self._refuse("too many silent connections of replicas")
            return
        try:
            self.replica = port.certificate.verify(transport.get_extra_info("peercert_der"), at=time.time()).name
        except Untrusted as error:
            self._refuse(error.text)
            return
        port.unasked.add(self)
        self._timer = asyncio.get_running_loop().call_later(
            defaults.HEAD_DEADLINE, self._refuse, "it said nothing in time"
        )

    def data_received(self, data: Any) -> None:
        self._line += data
        line, end, rest = bytes(self._line).partition(b"\n")
        if not end:
            if len(self._line) > MAX_HEAD_BYTES:
                self._refuse(f"a head of more than {MAX_HEAD_BYTES} bytes")
            return
        try:
            head = read_head(line[: MAX_HEAD_BYTES + 1])
        except ProtocolError as error:
            self.transport.write(refused(error))
            self._refuse(error.text, cut=False)
            return
        self._done()
        if head is None:
            if len(self._port.followers) >= MAX_FOLLOWERS:
                self._refuse("too many follow already")
                return
            _Follower(self._port, self.transport).begin()
        elif isinstance(head, Asking):
            if len(self._port.asked) >= MAX_ASKED:
                self._refuse("too many questions at once")
                return
            Asked(self.transport, self._port.asked).begin(head, self._port.host.answer)
        elif isinstance(head, Carrying):
            if len(self._port.carried) >= MAX_CARRIED:
                self._refuse("too many agents' connections are carried here")
                return
            Carried(self.transport, self._port.carried, self._port.host.link(head.remote)).begin(rest)
        else:
            member = self._port.host.member(head.cluster)
            Passed(self.transport, self._port.passed, head, member=member, replica=self.replica).begin(rest)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, _exc: Exception | None) -> None:
        self._done()

    def _done(self) -> None:
        self._port.unasked.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, text: str, *, cut: bool = True) -> None:
        self._done()
        self._port.refuse(self.remote, text)
        if cut:
            self.transport.abort()
        else:
            self.transport.close()


class _Follower(asyncio.Protocol):
    """Another server that is told what this one holds. One that does not read is told later what is then true."""

    def __init__(self, port: ReplicaPort, transport: Any) -> None:
        self._port = port
        self._told: dict[str, Held] = {}
        self._full = False
        self.transport = transport

    def begin(self) -> None:
        self._port.followers.add(self)
        self.transport.set_protocol(self)
        self.tell(self._port.host.held())

    def tell(self, held: dict[str, Held]) -> None:
        if self._full:
            return
        lines = [lost(cluster, meant=self._meant(cluster)) for cluster in self._told if cluster not in held]
        lines += [holds(cluster, each) for cluster, each in held.items() if self._told.get(cluster) != each]
        self._told = dict(held)
        self.transport.write(b"".join([*lines, alive(ready=self._port.host.ready)]))

    def _meant(self, cluster: str) -> bool:
        member = self._port.host.member(cluster)
        return member is None or member.ended_by_intent

    def data_received(self, _data: Any) -> None:
        self.transport.abort()  # it has nothing more to say

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False

    def connection_lost(self, _exc: Exception | None) -> None:
        self._port.followers.discard(self)
