"""Carries an agent's new link to the server that holds its tunnel, as bytes: both ends.

Whatever balances the way in may send an agent that comes back to any server. The agent names its tunnel in the request
for the WebSocket, and the tunnel's name shows which server owns it; the server that it came to forwards the request and
everything behind it over the owner's replica port, once. The handshake is the owner's: the server in between sees no
more than whatever ends the outer TLS does, proves nothing in the owner's place and decides nothing. If the owner cannot
be reached or does not take the link, this server answers that there is no such tunnel, and the agent opens a new one
here.

None of these peers has proven anything yet, so their connections are bounded in number here, and in time by the
listener's deadline there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from daemon.log import get_logger
from protocol import defaults
from protocol.aio.buffers import shared_buffer
from protocol.constants import Code
from protocol.errors import ProtocolError
from tower_server.replicas.link import Link
from tower_server.replicas.passing import PassedStream, Start
from tower_server.replicas.wire import ACCEPTED, Carrying

MAX_CARRIED: Final = 256
WRITE_HIGH: Final = 256 * defaults.KIB

log = get_logger(__name__)


class AgentEnd(asyncio.BufferedProtocol):
    """Where the agent came to. `done(taken)` is called once: whether the owner has taken it."""

    def __init__(
        self, transport: asyncio.Transport, held: set[AgentEnd], remote: str, done: Callable[[bool], None]
    ) -> None:
        self._buffer = shared_buffer(asyncio.get_running_loop())
        self._held = held
        self._remote = remote
        self._done = done
        self._taken = False
        self.transport = transport
        self.stream: Any = None

    def begin(self, link: Link, tunnel: str, request: bytes, *, start: Start) -> None:
        """Reading is paused until the owner has answered."""
        self._held.add(self)
        self.stream = PassedStream(link, Carrying(tunnel, self._remote), _OwnerEnd(self), start=start)
        self.stream.write(request)

    # ---- the owner's side ---------------------------------------------------------------------------------------

    def taken(self) -> None:
        if self.transport.is_closing():
            self.stream.reset(Code.CANCELLED, "the agent is gone")
            return
        self._taken = True
        self.transport.set_protocol(self)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH)
        self._done(True)
        self.transport.resume_reading()

    def lost(self, error: ProtocolError | None) -> None:
        self._held.discard(self)
        if self._taken:
            self.transport.abort() if error is not None else self.transport.close()
            return
        log.info("link-not-carried", remote=self._remote, text=error.text if error is not None else "the agent is gone")
        self._done(False)

    # ---- the agent's side ---------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(self._buffer[:nbytes])

    def data_received(self, data: memoryview) -> None:
        self.stream.write(bytes(data))

    def eof_received(self) -> bool:
        return False  # a WebSocket does not half-close

    def pause_writing(self) -> None:
        self.stream.pause_reading()

    def resume_writing(self) -> None:
        self.stream.resume_reading()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._held.discard(self)
        self.stream.reset(Code.CANCELLED, "the agent is gone")


class _OwnerEnd:
    """The stream's callbacks; the connection's own names are taken by its transport's."""

    def __init__(self, end: AgentEnd) -> None:
        self._end = end

    def stream_accepted(self) -> None:
        self._end.taken()

    def data_received(self, data: memoryview) -> None:
        self._end.transport.write(bytes(data))

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._end.transport.pause_reading()

    def resume_writing(self) -> None:
        self._end.transport.resume_reading()

    def connection_lost(self, error: ProtocolError | None) -> None:
        self._end.lost(error)


class Carried(asyncio.Protocol):
    """At the owner: a link like those of its own tunnel port, over another server's connection."""

    def __init__(self, transport: Any, held: set[Carried], link: Any) -> None:
        self._held = held
        self._link = link
        self.transport = transport

    def begin(self, early: bytes) -> None:
        self._held.add(self)
        self.transport.set_protocol(self)
        self.transport.write(ACCEPTED)
        self._link.connection_made(self.transport)
        if early:
            self.data_received(early)

    def data_received(self, data: Any) -> None:
        self._link.received(memoryview(data))

    def eof_received(self) -> bool:
        return bool(self._link.eof_received())

    def pause_writing(self) -> None:
        self._link.pause_writing()

    def resume_writing(self) -> None:
        self._link.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._held.discard(self)
        self._link.connection_lost(exc)
