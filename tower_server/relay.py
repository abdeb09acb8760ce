"""One caller's connection: relays bytes between its TCP transport and a stream of a tunnel, without looking at them.

A connection is first waiting (held until there is a tunnel), then opening, then relaying; or it ends with an answer
that the server gives itself. Until the peer accepts the stream, up to `EARLY_BYTES` of what the caller sends are kept:
if the open is refused, another tunnel or the server's own TLS needs them. A tunnel that stalls before it has answered
is left for one that does not: until the apiserver's end of TLS has spoken, the caller cannot have requested anything.

There is no task and no buffer for each connection: reads go through the loop's one buffer, writes wait in the
transports' own queues, and each side's back-pressure pauses the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING, Final, cast

from daemon.wirefault import WIRE_FAULTS, wire_fault
from protocol import defaults
from protocol.aio.buffers import shared_buffer
from protocol.aio.stream import StreamTransport
from protocol.aio.tlsfailure import TlsError
from protocol.constants import Code
from protocol.errors import ProtocolError, StreamRefused, TunnelLost
from tower_server.answer import Answer
from tower_server.records import KUBERNETES
from tower_server.unanswered import STILL_SILENT, UnansweredOpen

if TYPE_CHECKING:
    from tower_server.listeners import CallerPort

EARLY_BYTES: Final = defaults.RESERVED_CREDIT  # what may leave before the peer has accepted
WRITE_HIGH: Final = 64 * defaults.KIB  # small: the kernel buffers too, and what is queued here is in no budget
LINGER: Final = 30.0  # seconds that a caller has to read the last bytes of a stream that has ended
MAX_ATTEMPTS: Final = 4  # how many tunnels are tried, where each drains or dies, before the caller is answered
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER of zero: the peer sees a reset, not a clean end

# Under which result a refused open is counted; "refused" when it is not named here.
RESULTS: Final = {Code.DIAL_TIMEOUT: "timeout", Code.BUDGET: "limit", Code.TOO_MANY: "limit"}
_UNREACHABLE: Final = frozenset({Code.DIAL_FAILED, Code.DIAL_TIMEOUT})
_ELSEWHERE: Final = frozenset({Code.DRAINING, Code.TUNNEL_LOST, Code.SHUTDOWN, Code.REPLACED, Code.DEAD_PEER})


class CallerConnection(asyncio.BufferedProtocol):
    """Made by a CallerPort for each connection that it accepts."""

    __slots__ = (
        "_attempts",
        "_early",
        "_early_eof",
        "_late",
        "_loop",
        "_port",
        "_stream_full",
        "_unanswered_open",
        "_view",
        "caller",
        "code",
        "id",
        "moved_in",
        "moved_out",
        "opened_at",
        "outcome",
        "stream",
        "transport",
    )

    def __init__(self, port: CallerPort, connection_id: str) -> None:
        self._port = port
        self._loop = port.loop
        self._view = shared_buffer(port.loop)
        self.transport: asyncio.Transport | None = None
        self._early: bytearray | None = bytearray()
        self._early_eof = False
        self._unanswered_open: UnansweredOpen | None = None  # while a tunnel owes the answer to an open
        self._late: asyncio.TimerHandle | None = None  # set once the stream has ended, and what it brought is under way
        self._stream_full = False
        self._attempts = 0
        self.id = connection_id
        self.caller = ""
        self.stream: StreamTransport | None = None
        self.opened_at = self._loop.time()
        self.outcome = ""
        self.code = ""
        self.moved_in = 0  # bytes that the metrics know of already
        self.moved_out = 0

    # ---- the caller's side --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH)
        self.caller = address_text(transport.get_extra_info("peername"))
        if self._port.entered(self):
            self._begin()
        else:
            self.abort("refused: too many connections")

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._early is None:
            return self._view
        return self._view[: max(1, EARLY_BYTES - len(self._early))]

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._view[:nbytes])
        if self._early is not None:
            self._early += data
            if len(self._early) >= EARLY_BYTES:
                self._steer_reading()
        if self.stream is not None:
            self.stream.write(data)

    def eof_received(self) -> bool:
        if self.stream is not None and self._late is None:
            self._early_eof = True
            self.stream.write_eof()
            return True
        return False  # asyncio closes the transport: nothing is to come any more

    def pause_writing(self) -> None:
        if self.stream is not None:
            self.stream.pause_reading()

    def resume_writing(self) -> None:
        if self.stream is not None:
            self.stream.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._answered()
        if self._late is not None:
            self._late.cancel()
        self._port.member.hold.leave(self)
        stream = self.stream
        if stream is not None:
            stream.reset(Code.CANCELLED, "the caller is gone")
        self._note("caller gone" if stream is None or exc is not None else "finished")
        self._port.left(self)

    # ---- the way to the member ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Opens a stream in the best tunnel; without one, waits for it or answers the caller."""
        while (tunnel := self._port.way()) is not None and self._attempts < MAX_ATTEMPTS:
            ours = self._port.service == KUBERNETES and tunnel in self._port.member.tunnels  # not over another server
            if ours and self._port.member.hopeless(tunnel):
                self._unanswered(STILL_SILENT)
                return
            self._attempts += 1
            try:
                self.stream = tunnel.start_open(
                    self._port.service, _StreamEnd(self), caller=self.caller, connection_id=self.id
                )
            except StreamRefused as error:
                if error.code in _ELSEWHERE:
                    continue
                self._refused(error)
                return
            if self._early:
                self.stream.write(bytes(self._early))
            if self._early_eof:
                self.stream.write_eof()
            if ours:
                again = self._attempts < MAX_ATTEMPTS
                self._unanswered_open = UnansweredOpen(
                    self._port.member,
                    tunnel,
                    elsewhere=self._ask_another if again else None,
                    in_vain=self._give_up,
                )
            return
        if tunnel is None and self._port.wait(self, self._held):
            return
        self._port.count("no_tunnel")
        self._answer(self._port.no_tunnel())

    def _ask_another(self) -> None:
        self._leave()
        self._begin()
        self._steer_reading()

    def _give_up(self, why: str) -> None:
        self._leave()
        self._unanswered(why)

    def _leave(self) -> None:
        """Abandon the stream that the agent does not answer."""
        assert self.stream is not None
        left, self.stream = self.stream, None
        left.set_protocol(asyncio.Protocol())  # so that its end is not reported to this connection
        left.reset(Code.CANCELLED, "the tunnel stalls")
        self._stream_full = False

    def _answered(self) -> None:
        """The open is decided: stop watching it."""
        if self._unanswered_open is not None:
            self._unanswered_open.over()
            self._unanswered_open = None

    def _held(self, found: bool) -> None:
        """The hold is over."""
        if found:
            self._begin()
        else:
            self._port.count("no_tunnel")
            self._answer(self._port.no_tunnel())

    def accepted(self) -> None:
        """The peer has accepted the stream: from now on bytes only pass through."""
        self._early = None
        self._answered()
        self._port.accepted(self)
        self._steer_reading()

    def stream_full(self, full: bool) -> None:
        self._stream_full = full
        self._steer_reading()

    def _steer_reading(self) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        wanted = not self._stream_full and (self._early is None or len(self._early) < EARLY_BYTES)
        if wanted != transport.is_reading():
            if wanted:
                transport.resume_reading()
            else:
                transport.pause_reading()

    def write_through(self, pieces: list[memoryview]) -> int:
        """Gives the socket at once what it takes of that, uncopied; how many bytes. By a write for each, a caller on
        the same processor would be woken by each."""
        transport = self.transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size():
            return 0
        sock: socket.socket = transport.get_extra_info("socket")
        try:
            return os.writev(sock.fileno(), pieces)
        except OSError:  # it is full, or broken: the transport's own write tells
            return 0

    def deliver_eof(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write_eof()

    def stream_lost(self, error: ProtocolError | None) -> None:
        """The stream has ended."""
        self._answered()
        was_open = self._early is None
        if was_open:
            self._port.stream_ended(self)
        if self.transport is None:
            return
        if was_open and error is None:
            self._note("finished")
            self._linger(self.transport)
        elif was_open:
            self._cut(error)
        else:
            error = error or TunnelLost(Code.TUNNEL_LOST, "the stream ended before it was accepted")
            tunnel = self.stream.get_extra_info("tunnel") if self.stream is not None else None
            self.stream = None
            self._stream_full = False
            if tunnel is None:  # passed on to the server that owns the tunnel, which has decided
                silent = error.code == Code.DEAD_PEER
            else:
                silent = error.code == Code.DIAL_TIMEOUT and tunnel.stalled
            if silent:
                self._unanswered(error.text)
            else:
                self._refused(error)

    def _linger(self, transport: asyncio.Transport) -> None:
        """Half-close, and close when the caller does. If the socket were closed at once, a caller that still sends
        anything would get a reset and lose what it has not read yet: the end of its download."""
        if not transport.is_closing():
            transport.write_eof()
            self._stream_full = False
            self._steer_reading()  # what it still sends is dropped
            self._late = self._loop.call_later(LINGER, transport.abort)

    def _refused(self, error: ProtocolError) -> None:
        """The stream was not opened. What the caller has sent is still here."""
        if error.code in _ELSEWHERE or isinstance(error, TunnelLost):
            if self._attempts < MAX_ATTEMPTS:
                self._begin()
                return
            self._port.count("lost")
            self._answer(self._port.no_tunnel())
            return
        if error.code in _UNREACHABLE:
            self._port.unreachable()
        code, result = wire_fault(error.code, "TWR301"), RESULTS.get(error.code, "refused")
        self._port.count(result)
        retry = 1.0 if result == "limit" else None
        name = self._port.member.name
        self._answer(Answer(code, f"cluster {name}: {error.text or code}", retry_after=retry, cluster=name))

    def _unanswered(self, why: str) -> None:
        """The agent itself is silent, not its apiserver: the caller has waited long enough and is answered."""
        self._port.count(RESULTS[Code.DIAL_TIMEOUT])
        name = self._port.member.name
        self._answer(Answer(WIRE_FAULTS[Code.DEAD_PEER], f"cluster {name}: {why}", cluster=name))

    def _answer(self, answer: Answer) -> None:
        """Ends the connection with an answer, if this port gives any; else by closing it."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        self._port.member.metrics.answered(answer.code)
        self._note("answered", answer.code)
        early = bytes(self._early or b"")
        self._early = bytearray()
        if not self._port.no_tunnel_answers:
            transport.close()
        elif self._port.answerer.start(transport, early, answer, done=self._answer_done):
            self.transport = None  # the answer owns it now
        else:
            self.outcome = "closed: too many answers at once"
            transport.abort()

    def _answer_done(self, problem: TlsError | None) -> None:
        if problem is not None:
            self.outcome = f"no answer: {problem}"
            self._port.member.metrics.tls_failures.inc()
        self._port.left(self)

    # ---- the end ------------------------------------------------------------------------------------------------

    def abort(self, why: str) -> None:
        """Ends the connection from the server's side."""
        self._note(why)
        if self.transport is not None:
            reset(self.transport)

    def _cut(self, error: ProtocolError | None) -> None:
        self._note(f"cut: {error}")
        if self.transport is not None:
            reset(self.transport)

    def _note(self, outcome: str, code: str = "") -> None:
        if not self.outcome:
            self.outcome, self.code = outcome, code


class _StreamEnd(asyncio.Protocol):
    """The stream's callbacks: their names are those of the socket's callbacks, which the connection has itself."""

    __slots__ = ("_connection",)

    def __init__(self, connection: CallerConnection) -> None:
        self._connection = connection

    def stream_accepted(self) -> None:
        self._connection.accepted()

    def data_received(self, data: memoryview) -> None:  # type: ignore[override]
        transport = self._connection.transport
        if transport is not None:
            transport.write(bytes(data))  # borrowed: what the loop's transport queues must be a copy

    def pieces_received(self, pieces: list[memoryview]) -> int:
        return self._connection.write_through(pieces)

    def eof_received(self) -> bool:
        self._connection.deliver_eof()
        return True

    def pause_writing(self) -> None:
        self._connection.stream_full(True)

    def resume_writing(self) -> None:
        self._connection.stream_full(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.stream_lost(cast("ProtocolError | None", exc))


def reset(transport: asyncio.Transport) -> None:
    """Ends a connection so that its peer cannot take it for an orderly end."""
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):  # it is gone already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


def address_text(peer: object) -> str:
    """`host:port` of a socket's peer; an IPv4 caller of a dual-stack port is shown as the IPv4 caller that it is."""
    if not isinstance(peer, tuple) or len(peer) < 2:
        return "unknown"
    host = str(peer[0]).removeprefix("::ffff:") if "." in str(peer[0]) else str(peer[0])
    return f"[{host}]:{peer[1]}" if ":" in host else f"{host}:{peer[1]}"


def connection_ids() -> ConnectionIds:
    return ConnectionIds(os.urandom(4).hex())


class ConnectionIds:
    """Ids that no other connection of this or another run has: a random start, then a count."""

    def __init__(self, start: str) -> None:
        self._start = start
        self._count = 0

    def next(self) -> str:
        self._count += 1
        return f"{self._start}-{self._count:x}"
