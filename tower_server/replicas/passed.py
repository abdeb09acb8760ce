"""A caller whom another server has passed on to this one, which holds the tunnel: the far end of `passing`.

It goes into one of this server's own tunnels and nowhere else. An agent that does not answer is given up here as it is
for this server's own callers; the other server has kept the caller's first bytes, and then looks for another way.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from daemon.log import get_logger
from protocol import defaults
from protocol.constants import Code
from protocol.errors import ProtocolError, StreamRefused
from tower_server.member import Member
from tower_server.records import KUBERNETES
from tower_server.relay import reset
from tower_server.replicas.wire import ACCEPTED, Passing, refused
from tower_server.unanswered import STILL_SILENT, UnansweredOpen

WRITE_HIGH: Final = 256 * defaults.KIB

audit = get_logger("audit")


class Passed(asyncio.Protocol):
    """One caller of another server, `replica`, on the way to `member`."""

    def __init__(
        self, transport: Any, held: set[Passed], head: Passing, *, member: Member | None, replica: str
    ) -> None:
        self._held = held
        self._head = head
        self._member = member
        self._replica = replica
        self._stream: Any = None
        self._accepted = False
        self._unanswered_open: UnansweredOpen | None = None
        self._outcome = ""
        self._began = asyncio.get_running_loop().time()
        self.transport = transport

    def begin(self, early: bytes) -> None:
        self._held.add(self)
        self.transport.set_protocol(self)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH)
        head, member = self._head, self._member
        tunnel = member.pick() if member is not None else None
        apiserver = head.service == KUBERNETES
        try:
            if member is None or tunnel is None:
                raise StreamRefused(Code.DRAINING, f"this server holds no tunnel of cluster {head.cluster}")
            if apiserver and member.hopeless(tunnel):
                raise StreamRefused(Code.DEAD_PEER, STILL_SILENT)
            self._stream = tunnel.start_open(
                head.service, _StreamEnd(self), caller=head.caller, connection_id=head.connection
            )
        except StreamRefused as error:
            self._refuse(error)
            return
        if early:
            self._stream.write(early)
        if apiserver:
            self._unanswered_open = UnansweredOpen(member, tunnel, elsewhere=self._ask_another, in_vain=self._give_up)

    def _ask_another(self) -> None:
        """The other server, which has the caller's first bytes, asks anew."""
        self._refuse(StreamRefused(Code.TUNNEL_LOST, "the tunnel stalls"))

    def _give_up(self, why: str) -> None:
        self._refuse(StreamRefused(Code.DEAD_PEER, why))

    def _answered(self) -> None:
        if self._unanswered_open is not None:
            self._unanswered_open.over()
            self._unanswered_open = None

    def _refuse(self, error: ProtocolError) -> None:
        self._answered()
        self._outcome = f"refused: {error.text}"
        self.transport.write(refused(error))
        self.transport.close()

    # ---- the other server's side --------------------------------------------------------------------------------

    def data_received(self, data: Any) -> None:
        if self._stream is not None:
            self._stream.write(bytes(data))

    def eof_received(self) -> bool:
        if self._stream is None or self.transport.get_extra_info("tls_truncated"):
            return False
        self._stream.write_eof()
        return True

    def pause_writing(self) -> None:
        if self._stream is not None:
            self._stream.pause_reading()

    def resume_writing(self) -> None:
        if self._stream is not None:
            self._stream.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._held.discard(self)
        self._answered()
        stream, head = self._stream, self._head
        if stream is not None:
            stream.reset(Code.CANCELLED, "the caller is gone")
        audit.info(
            "passed",
            connection=head.connection,
            caller=head.caller,
            cluster=head.cluster,
            service=head.service,
            via=self._replica,
            bytes_up=stream.bytes_out if stream is not None else 0,
            bytes_down=stream.bytes_in if stream is not None else 0,
            seconds=round(asyncio.get_running_loop().time() - self._began, 4),
            outcome=self._outcome or ("caller gone" if exc is not None else "finished"),
        )

    # ---- the stream's side --------------------------------------------------------------------------------------

    def accepted(self) -> None:
        self._accepted = True
        self._answered()
        self.transport.write(ACCEPTED)

    def deliver(self, data: memoryview) -> None:
        self.transport.write(data)

    def deliver_eof(self) -> None:
        self.transport.write_eof()

    def stream_full(self, full: bool) -> None:
        if full:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def stream_lost(self, error: ProtocolError | None) -> None:
        if self.transport.is_closing():
            return
        if not self._accepted:
            self._refuse(error or StreamRefused(Code.TUNNEL_LOST, "the stream ended before it was accepted"))
        elif error is None:
            self._outcome = self._outcome or "finished"
            self.transport.close()
        else:
            self._outcome = f"cut: {error}"
            reset(self.transport)


class _StreamEnd(asyncio.Protocol):
    """The stream's callbacks; the connection's own names are taken by its transport's."""

    def __init__(self, connection: Passed) -> None:
        self._connection = connection

    def stream_accepted(self) -> None:
        self._connection.accepted()

    def data_received(self, data: memoryview) -> None:  # type: ignore[override]
        self._connection.deliver(data)

    def eof_received(self) -> bool:
        self._connection.deliver_eof()
        return True

    def pause_writing(self) -> None:
        self._connection.stream_full(True)

    def resume_writing(self) -> None:
        self._connection.stream_full(False)

    def connection_lost(self, exc: Any) -> None:
        self._connection.stream_lost(exc)
