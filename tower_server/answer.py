"""How the server answers a caller itself: it ends the caller's TLS, reads one request head, answers why, and closes.

Only callers that no tunnel can take are answered so. The head is counted and dropped, never kept or logged: it may hold
a bearer token that was meant for the member. The number of callers that are being answered is bounded, since each costs
a TLS handshake with somebody who has not authenticated.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from daemon.faults import fault
from gateway.status import fault_response
from protocol import defaults
from protocol.aio.tlsfailure import TlsError
from protocol.aio.tlspump import TlsServerSocketPump

MAX_AT_ONCE: Final = 1024
LINGER: Final = 1.0  # seconds in which a caller may still send, so that what it sends does not cut off the answer
MAX_DRAINED: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What a caller is told. An empty `mend` stands for that of the fault."""

    code: str
    message: str
    mend: str | None = None
    cluster: str = ""
    """Whose name stands in the mend."""
    retry_after: float | None = None
    status: int | None = None
    """In place of the fault's own: why an agent was refused is not what its callers did wrong."""


class Answerer:
    """Makes connections end in an answer. `context` is the server's own, made for `*.members.tower`."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self._deadline = defaults.HEAD_DEADLINE
        self.busy = 0

    def start(
        self,
        transport: asyncio.Transport,
        early: bytes,
        answer: Answer,
        *,
        done: Callable[[TlsError | None], None],
    ) -> bool:
        """Takes the connection over; `done` is called at its end, with what was wrong with its TLS. False: too many."""
        if self.busy >= MAX_AT_ONCE:
            return False
        self.busy += 1
        transport.pause_reading()
        pump = _Pump(self, lambda: _Reader(answer, self._deadline), done)
        transport.set_protocol(pump)
        pump.connection_made(transport)
        if early:
            pump.data_received(early)
        if not transport.is_closing():
            transport.resume_reading()
        return True


class _Pump(TlsServerSocketPump):
    """Tells its owner when the connection is gone."""

    def __init__(
        self, answerer: Answerer, reader: Callable[[], _Reader], done: Callable[[TlsError | None], None]
    ) -> None:
        super().__init__(answerer.context, reader, on_failure=self._note)
        self._answerer = answerer
        self._done = done
        self._problem: TlsError | None = None

    def _note(self, error: TlsError) -> None:
        self._problem = error

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._answerer.busy -= 1
        self._done(self._problem)


class _Reader(asyncio.Protocol):
    """Counts bytes until the head is over, answers, drains a little, closes."""

    def __init__(self, answer: Answer, deadline: float) -> None:
        self._answer = answer
        self._deadline = deadline
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._method = b""
        self._tail = b""
        self._seen = 0
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._timer = asyncio.get_running_loop().call_later(self._deadline, self._too_slow)

    def data_received(self, data: bytes) -> None:
        self._seen += len(data)
        if self._answered:
            if self._seen > MAX_DRAINED:
                self._close()
            return
        if len(self._method) < 5:
            self._method += bytes(data[: 5 - len(self._method)])
        window = self._tail + bytes(data)
        self._tail = window[-3:]
        if b"\r\n\r\n" in window:
            self._reply(self._answer)
        elif self._seen > defaults.MAX_HEAD_BYTES:
            self._reply(Answer("TWR410", f"the request's head has more than {defaults.MAX_HEAD_BYTES} bytes"))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._transport = None

    def _too_slow(self) -> None:
        self._timer = None
        self._reply(Answer("TWR408", f"no complete request within {self._deadline:g} s"))

    def _reply(self, answer: Answer) -> None:
        if self._answered or self._transport is None:
            return
        self._answered = True
        self._seen = 0
        self._tail = b""
        self._stop_timer()
        response = fault_response(
            answer.code,
            answer.message,
            mend=fault(answer.code).mend_for(answer.cluster) if answer.mend is None else answer.mend,
            retry_after=answer.retry_after,
            head_only=self._method == b"HEAD ",
            status=answer.status,
        )
        self._transport.write(response)
        self._transport.write_eof()
        self._timer = asyncio.get_running_loop().call_later(LINGER, self._close)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
