"""What one other server of the host says of itself, followed over its replica port.

A link is up while heartbeats come, and only then does what the other server holds count. It is dialled again for as
long as the directory names the server. The link knows the callers that were passed on over it: when it goes down, those
that still wait for an answer are given back, so that they can go elsewhere. Those that are relayed already are left
alone for as long as a tunnel would wait for its link, since a server that is merely slow may go on.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from certs.errors import Untrusted
from daemon.backoff import Backoff
from daemon.log import get_logger
from protocol import defaults
from protocol.aio.tlsfailure import explained, out_of_time
from protocol.constants import Code
from protocol.errors import ProtocolError, RemoteProtocolError, TunnelLost
from tower_server.replicas.directory import Peer
from tower_server.replicas.identity import ReplicaCertificate
from tower_server.replicas.wire import FOLLOW, Held, read_holding, read_line

if TYPE_CHECKING:
    from tower_server.replicas.passing import PassedStream

RETRY_MAX: Final = 2.0  # seconds: a server that comes back is found before its callers give up
CUT: Final = "it lost its tunnels"
LEFT: Final = "its agents have left"
CLOCKS: Final = "; compare the clocks of the two servers"
LINE_LIMIT: Final = defaults.MAX_CONTROL_LINE_BYTES + 2

log = get_logger(__name__)


class Link:
    """To one server. `run` it as a task; `changed(link, clusters, why)` is called for each change of what it holds."""

    def __init__(
        self, peer: Peer, certificate: ReplicaCertificate, changed: Callable[[Link, set[str], str], None]
    ) -> None:
        self.peer = peer
        self.certificate = certificate
        self.up = False
        self.ready = False
        self.was_up = False
        self.refused = False
        """At the last dial nobody listened there: the process is gone, where it was there before."""
        self.holds: dict[str, Held] = {}
        self.passing: set[PassedStream] = set()
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._said = ""
        self._cut: asyncio.TimerHandle | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def why(self) -> str:
        """Why it is not up."""
        return self._said or "it has not been reached yet"

    @property
    def serving(self) -> bool:
        """Whether callers may be sent there."""
        return self.up and self.ready

    async def run(self) -> None:
        """Follows until cancelled."""
        backoff = Backoff(random=random.random, maximum=RETRY_MAX)
        try:
            while True:
                self._reader = asyncio.create_task(self._follow(backoff), name=f"replica-{self.peer.name}")
                await asyncio.wait({self._reader})
                why = _why(self._reader)
                self.refused = not self._reader.cancelled() and isinstance(
                    self._reader.exception(), ConnectionRefusedError
                )
                self._down(why)
                await asyncio.sleep(backoff.next())
        finally:
            if self._reader is not None:
                self._reader.cancel()
                await asyncio.wait({self._reader})
            self._down("this host no longer names it")

    def failed(self) -> None:
        """A connection could not be passed on: find out at once whether the other server is there at all."""
        if self._reader is not None:
            self._reader.cancel()

    async def _follow(self, backoff: Backoff) -> None:
        peer = self.peer
        async with asyncio.timeout(defaults.DIAL_DEADLINE):
            reader, writer = await asyncio.open_connection(
                peer.host, peer.port, ssl=self.certificate.calling, server_hostname=peer.name, limit=LINE_LIMIT
            )
        try:
            leaf = writer.get_extra_info("ssl_object").getpeercert(True)
            self.certificate.verify([leaf] if leaf else [], at=time.time(), name=peer.name)
            writer.write(FOLLOW)
            while True:
                async with asyncio.timeout(defaults.REPLICA_DEAD_AFTER):
                    line = await reader.readline()
                if not line.endswith(b"\n"):
                    raise ConnectionResetError("it ended the connection")
                self._heard(line)
                if self.up:
                    backoff.reset()
        finally:
            writer.transport.abort()

    def _heard(self, line: bytes) -> None:
        message = read_line(line)
        match message["type"]:
            case "alive":
                self._alive(ready=message.get("ready") is True)
            case "holds" | "lost":
                cluster, held = read_holding(message)
                if held is None:
                    self.holds.pop(cluster, None)
                else:
                    self.holds[cluster] = held
                if self.up:
                    self._changed(self, {cluster}, LEFT if message.get("meant") is True else CUT)

    def _alive(self, *, ready: bool) -> None:
        if self.up and ready == self.ready:
            return
        if not self.up:
            log.info("replica-up", replica=self.peer.name, address=self.peer.address, clusters=len(self.holds))
        self.up, self.ready, self.was_up, self._said = True, ready, True, ""
        self._stop_cut()
        self._changed(self, set(self.holds), "it is stopping")

    def _down(self, why: str) -> None:
        if self.up or why != self._said:
            self._said = why
            log.warning("replica-down", replica=self.peer.name, address=self.peer.address, code="TWR118", text=why)
        was, self.up, self.ready = set(self.holds), False, False
        self.holds.clear()
        for stream in list(self.passing):
            if not stream.accepted:
                stream.lose(TunnelLost(Code.TUNNEL_LOST, f"server {self.peer.name} is gone: {why}"))
        if self.passing and self._cut is None:
            self._cut = self._loop.call_later(defaults.RESUME_WINDOW, self._cut_all)
        self._changed(self, was, why)

    def _cut_all(self) -> None:
        self._cut = None
        for stream in list(self.passing):
            stream.lose(TunnelLost(Code.DEAD_PEER, f"server {self.peer.name} has not been heard of"))

    def _stop_cut(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None


def _why(task: asyncio.Task[None]) -> str:
    """Why a link ended, in words. An exception that neither the peer nor the network explains is raised: a defect."""
    if task.cancelled():
        return "a connection to it failed"
    error = task.exception()
    if isinstance(error, TimeoutError):
        return f"nothing heard from it for {defaults.REPLICA_DEAD_AFTER:g} s"
    if isinstance(error, ssl.SSLError):
        return f"{explained(error, None)}{CLOCKS if out_of_time(error) else ''}"
    if isinstance(error, ValueError):  # readline's, for a line above the limit
        return str(RemoteProtocolError(Code.TOO_LARGE, f"a line of it above {LINE_LIMIT} bytes"))
    if isinstance(error, Untrusted):
        return error.text
    if isinstance(error, (OSError, ProtocolError)):
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    if error is not None:
        raise error
    return "it ended the connection"
