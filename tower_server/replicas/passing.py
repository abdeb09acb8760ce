"""A caller's connection on its way to the server that holds the tunnel: the near end. `passed` is the far end.

To whatever relays the caller it behaves like a tunnel's stream. It is a TLS connection of its own to the owner: first a
head, behind it what the caller sent early, and after the owner's answer plain bytes, with TCP's half-close and
back-pressure below. An end without close_notify counts as a cut, never as an orderly end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from certs.errors import Untrusted
from protocol import defaults
from protocol.aio.tlsfailure import TlsError
from protocol.aio.tlspump import TlsClientSocketPump
from protocol.constants import Code
from protocol.errors import ProtocolError, TunnelLost
from tower_server.replicas.wire import MAX_HEAD_BYTES, Carrying, Passing, read_answer

if TYPE_CHECKING:
    from tower_server.replicas.link import Link

WRITE_HIGH: Final = 256 * defaults.KIB
Start = Callable[[Coroutine[Any, Any, None], str], object]


class PassedStream:
    """One connection. Made by `Way.start_open`; dials at once."""

    def __init__(self, link: Link, head: Passing | Carrying, protocol: Any, *, start: Start) -> None:
        self.accepted = False
        self.bytes_in = 0
        self.bytes_out = 0
        self._link = link
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._early = bytearray(head.line())
        self._early_eof = False
        self._answer = bytearray()
        self._pump: Any = None
        self._reading = True
        self._eof = False
        self._lost = False
        self._timer = self._loop.call_later(defaults.OPEN_DEADLINE, self._too_slow)
        link.passing.add(self)
        start(self._dial(), f"pass-{head.connection}")

    # ---- what the caller's end calls ----------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._lost:
            return
        self.bytes_out += len(data)
        if self._pump is None:
            self._early += data
        else:
            self._pump.write(data)

    def write_eof(self) -> None:
        if self._pump is None:
            self._early_eof = True
        elif not self._lost:
            self._pump.write_eof()

    def pause_reading(self) -> None:
        self._reading = False
        if self._pump is not None and self.accepted:
            self._pump.pause_reading()

    def resume_reading(self) -> None:
        self._reading = True
        if self._pump is not None:
            self._pump.resume_reading()

    def get_extra_info(self, _name: str, default: Any = None) -> Any:
        """As a tunnel's stream has it; which tunnel carries this one, its owner knows."""
        return default

    def reset(self, _code: Code, _text: str) -> None:
        """The caller is gone. The owner sees a cut, which is what it is."""
        self.lose(None)

    # ---- the way to the owner -----------------------------------------------------------------------------------

    async def _dial(self) -> None:
        peer, certificate = self._link.peer, self._link.certificate
        try:
            async with asyncio.timeout(defaults.DIAL_DEADLINE):
                await self._loop.create_connection(
                    lambda: TlsClientSocketPump(
                        certificate.calling, lambda: self, server_hostname=peer.name, on_failure=self._no_tls
                    ),
                    peer.host,
                    peer.port,
                )
        except (OSError, TimeoutError) as error:
            self._unreachable(str(error) or "no answer in time")

    def _no_tls(self, error: TlsError) -> None:
        self._unreachable(str(error))

    def _unreachable(self, why: str) -> None:
        if not self._lost:
            self.lose(TunnelLost(Code.TUNNEL_LOST, f"server {self._link.peer.name} cannot be reached: {why}"))
            self._link.failed()

    def _too_slow(self) -> None:
        self.lose(TunnelLost(Code.TUNNEL_LOST, f"no answer of server {self._link.peer.name} in time"))

    def connection_made(self, transport: Any) -> None:
        if self._lost:
            transport.abort()
            return
        try:
            self._link.certificate.verify(
                transport.get_extra_info("peercert_der"), at=time.time(), name=self._link.peer.name
            )
        except Untrusted as error:
            transport.abort()
            self._unreachable(error.text)
            return
        self._pump = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH)
        early, self._early = bytes(self._early), bytearray()
        transport.write(early)
        if self._early_eof:
            transport.write_eof()

    def data_received(self, data: memoryview) -> None:
        if self._lost:
            return
        if not self.accepted:
            self._answer += data
            line, end, rest = bytes(self._answer).partition(b"\n")
            if end:
                self._answer.clear()
                self._answered(line, rest)
            elif len(self._answer) > MAX_HEAD_BYTES:
                self.lose(TunnelLost(Code.TUNNEL_LOST, f"server {self._link.peer.name} gave no answer"))
            return
        self.bytes_in += len(data)
        self._protocol.data_received(data)

    def _answered(self, line: bytes, rest: bytes) -> None:
        try:
            refusal: ProtocolError | None = read_answer(line)
        except ProtocolError as error:
            refusal = TunnelLost(Code.TUNNEL_LOST, error.text)
        if refusal is not None:
            self.lose(refusal)
            return
        self.accepted = True
        self._timer.cancel()
        self._protocol.stream_accepted()
        if rest and not self._lost:
            self.bytes_in += len(rest)
            self._protocol.data_received(memoryview(rest))
        if not self._reading and not self._lost:
            self._pump.pause_reading()

    def eof_received(self) -> bool:
        if self._lost or self._pump.get_extra_info("tls_truncated"):
            self._broken(None)
            return False
        if not self.accepted:
            self._broken(None)
            return False
        self._eof = True
        return bool(self._protocol.eof_received())

    def pause_writing(self) -> None:
        if not self._lost:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        if not self._lost:
            self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._eof and exc is None:
            self.lose(None)
        else:
            self._broken(exc)

    def _broken(self, exc: Exception | None) -> None:
        why = f": {exc}" if exc is not None else ""
        self.lose(TunnelLost(Code.TUNNEL_LOST, f"the connection to server {self._link.peer.name} was cut{why}"))

    def lose(self, error: ProtocolError | None) -> None:
        """It is over; the protocol hears it once, from the loop. Idempotent."""
        if self._lost:
            return
        self._lost = True
        self._timer.cancel()
        self._link.passing.discard(self)
        if self._pump is not None:
            if self._eof and error is None:
                self._pump.close()
            else:
                self._pump.abort()
        self._loop.call_soon(self._protocol.connection_lost, error)
