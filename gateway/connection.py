"""One caller's connection: requests one at a time, each forwarded, refused, or turned into a splice.

It is the protocol above the caller's TLS, and while a request is under way the `Exchange` of one connection to the
apiserver. Invariants:
- A second request is read (up to one head's bytes), and not started before the first has ended. What follows an upgrade
  request waits for the 101 and is dropped if none comes.
- Both connections are reused only when request and answer ended exactly where their framing says.
- An answer that is cut short is never ended cleanly towards the caller.
- A request is sent a second time only if it is a GET, HEAD or OPTIONS without body or upgrade, on a kept connection
  that died without a byte of answer.
- A side that is slow stops the other side's reading; nothing is queued beyond one read and one head.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.body import scanner
from gateway.caller import Refuse, forwarded_for
from gateway.decide import Forward, Route, decide
from gateway.errors import RequestError, UpstreamError
from gateway.head import END, Framing, RequestHead, find_head
from gateway.relay import AnswerRelay
from gateway.state import CLOSED, DIALING, EXCHANGE, HEAD, LINGERING, SPLICED
from gateway.upstream import Connection
from protocol import defaults
from protocol.aio.tlsfailure import TlsError

CALLER_LEFT: Final = 499  # in records only: the caller went away before there was an answer
_RETRIED: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})
_NO_BODY: Final = Framing.NONE


class CallerConnection(AnswerRelay):
    """Made by `Gateway.serve`; ended by the caller, by a deadline, by revocation or by `Gateway.close`."""

    __slots__ = ()

    # -- the caller's side -------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.tunnel = transport.get_extra_info("tunnel")
        if not self.address and (peer := transport.get_extra_info("peername")):
            self.address = f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
        self.forwarded = forwarded_for(self.address)
        self.caller = self.gateway.caller_of(transport.get_extra_info("peercert_der") or [])
        self.proven = self.caller.identity is not None
        self.deadline = self.loop.time() + self._idle_limit()
        self.gateway.connections.add(self)

    def data_received(self, data: memoryview) -> None:
        phase = self.phase
        if phase is HEAD:
            if not self.held and len(data) <= defaults.MAX_HEAD_BYTES:
                raw = bytes(data)
                if raw.endswith(END) and raw.find(END) == len(raw) - len(END):
                    self._begin(raw, b"")  # one whole head and nothing behind it, as nearly always
                    return
            self._head_bytes(data)
        elif phase is SPLICED:
            self.bytes_in += len(data)
            assert self.upstream is not None
            self.upstream.transport.write(data)
        elif phase is LINGERING or phase is CLOSED:
            return
        elif self.request_body is not None:
            self._request_bytes(data)
        else:
            self.held += data
            self._steer_reading()

    def eof_received(self) -> bool:
        if self.phase is SPLICED and not self.upstream_ended:
            assert self.upstream is not None
            self.upstream.transport.write_eof()
            self.deadline = self.loop.time() + self.gateway.idle_limit
            return True
        return False  # the transport closes; a request that is under way ends with it, as at the apiserver itself

    def connection_lost(self, exc: Exception | None) -> None:
        phase, self.phase = self.phase, CLOSED
        if isinstance(exc, TlsError):
            self.gateway.observer.tls_failed(exc.failure.value, str(exc), self.address, self.connection_id)
        self.gateway.connections.discard(self)
        if self.dial is not None:
            self.dial.cancel()
            self.dial = None
        if phase in (DIALING, EXCHANGE, SPLICED):
            fault = self._cut_short() if phase is SPLICED else ""
            self._record(self.response.status if self.response is not None else CALLER_LEFT, fault)
        self._drop_upstream()

    def pause_writing(self) -> None:
        self.full = True
        if self.upstream is not None:
            self.upstream.transport.pause_reading()
        if self.phase is HEAD:
            self._steer_reading()

    def resume_writing(self) -> None:
        self.full = False
        if self.upstream is not None:
            self.upstream.transport.resume_reading()
        if self.phase is HEAD:
            self._steer_reading()
            if self.held:
                self.loop.call_soon(self._next)

    # -- a request ---------------------------------------------------------------------------------------------------

    def _head_bytes(self, data: memoryview | bytes) -> None:
        held = self.held
        if held:
            held += data
            block: bytes | bytearray = held
        else:
            block = bytes(data)
        try:
            size = find_head(block, self.searched)
        except RequestError as error:
            self._refuse_malformed(error)
            return
        if not size:
            if not held:
                self.held = bytearray(block)
                self.deadline = self.loop.time() + self.gateway.head_deadline
            self.searched = len(block)
            return
        raw = bytes(block[:size])
        self.searched = 0
        if len(block) == size:
            if held:
                self.held = bytearray()
            self._begin(raw, b"")
        else:
            rest = bytes(block[size:])
            self.held = bytearray()
            self._begin(raw, rest)

    def _begin(self, raw: bytes, rest: bytes) -> None:
        gateway = self.gateway
        self.deadline = float("inf")
        self.started = self.loop.time()
        self.bytes_in = len(raw)
        try:
            head = self.head = self.reader.parse(raw)
        except RequestError as error:
            self._refuse_malformed(error)
            return
        self._number()
        caller = self.caller
        authorization = b""
        if caller.identity is not None:
            caller = gateway.recheck_caller(caller)
            if caller.identity is not None:
                try:
                    authorization = gateway.own_authorization()
                except UpstreamError as error:
                    self._fail(error)
                    return
        policy = gateway.policy
        known, verdict = self.known, self.verdict
        if (
            verdict is None
            or known[0] is not head.fields
            or known[1] is not caller
            or known[2] is not policy
            or known[3] != authorization
        ):
            verdict = decide(head, caller, policy, Route(gateway.host, authorization, self.forwarded))
            self.known, self.verdict = (head.fields, caller, policy, authorization), verdict
        if isinstance(verdict, Refuse):
            self._refuse(verdict, rest)
            return
        self.forward = verdict
        self._forward(head, verdict, rest)

    def _forward(self, head: RequestHead, verdict: Forward, rest: bytes) -> None:
        out = verdict.head(head, self.audit_id.encode())
        if head.framing is not _NO_BODY:
            self.request_body = scanner(head.framing, head.length, RequestError)
        if self.request_body is None:
            self.retryable = head.upgrade is None and head.method in _RETRIED
        elif rest:
            try:
                piece, consumed = self.request_body.feed(rest)
            except RequestError as error:
                self._refuse_malformed(error)
                return
            out += piece
            self.bytes_in += consumed
            rest = rest[consumed:]
            if self.request_body.done:
                self.request_body = None
        if rest:
            self.held = bytearray(rest)
        if self.request_body is not None and not self.proven:
            self.deadline = self.started + self.gateway.head_deadline
        pool = self.pool = self.gateway.upstreams.pool(verdict.pool)
        connection = pool.take()
        self.outbox = out
        if connection is not None:
            self._send(connection)
        else:
            self._dial_anew()

    def _dial_anew(self) -> None:
        self.phase = DIALING
        self._steer_reading()
        self.dial = self.gateway.spawn(self._dial(), name=f"dial {self.connection_id}")

    async def _dial(self) -> None:
        assert self.pool is not None
        try:
            connection = await self.pool.dial()
        except UpstreamError as error:
            self.dial = None
            if self.phase is DIALING:
                self._fail(error)
            return
        self.dial = None
        if self.phase is DIALING:
            self._send(connection)
            self._steer_reading()
        else:
            self.pool.release(connection, self.loop.time())

    def _send(self, connection: Connection) -> None:
        self.phase = EXCHANGE
        self.upstream = connection
        connection.exchange = self
        if self.full:
            connection.transport.pause_reading()
        connection.transport.write(self.outbox)
        if not self.retryable:
            self.outbox = b""

    def _request_bytes(self, data: memoryview | bytes) -> None:
        body = self.request_body
        assert body is not None
        try:
            piece, consumed = body.feed(data)
        except RequestError as error:
            self._refuse_malformed(error)
            return
        self.bytes_in += consumed
        if self.upstream is not None:
            self.upstream.transport.write(piece)
        else:
            self.outbox += piece
        if body.done:
            self.request_body = None
        if consumed < len(data):
            self.held += data[consumed:]
            self._steer_reading()

    def _next(self) -> None:
        """A pipelined request, from a turn of its own so that one caller cannot keep the loop."""
        if self.phase is HEAD and self.held and not self.full:
            held, self.held = bytes(self.held), bytearray()
            self._head_bytes(held)
            if self.paused:
                self._steer_reading()
