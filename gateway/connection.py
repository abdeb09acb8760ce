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

import asyncio
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from gateway.answer import SWITCHING, relayed_head, switching_head
from gateway.audit import RequestRecord, named, verb_of
from gateway.body import Scanner, UntilClose, scanner
from gateway.caller import Caller, Refuse, forwarded_for
from gateway.decide import Forward, Route, decide
from gateway.errors import AnswerError, GatewayError, RequestError, UpstreamError
from gateway.head import END, Framing, RequestHead, RequestReader, ResponseHead, find_head, parse_response
from gateway.status import fault_response, status_response
from protocol import defaults

if TYPE_CHECKING:
    from gateway.proxy import Gateway
    from gateway.upstream import Connection, Pool

MAX_INTERIM_ANSWERS: Final = 16
LAST_CHUNK: Final = b"0\r\n\r\n"
EVENT_END: Final = b"\n\r\n"  # of a chunk that ends with a whole line
DRAIN_IDLE: Final = 1.0  # a draining connection between requests: the next may be on its way already
CALLER_LEFT: Final = 499  # in records only: the caller went away before there was an answer
JOIN_BELOW: Final = 16 * defaults.KIB  # head and body of an answer leave in one record up to here
_FIRST_LOOK: Final = 4 * defaults.KIB  # where the end of an answer's head is looked for first
_RETRIED: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})


class Phase(IntEnum):
    HEAD = 0  # between requests, or part of a head is there
    DIALING = 1
    EXCHANGE = 2
    SPLICED = 3
    LINGERING = 4  # our last byte is sent; what the caller still sends is dropped
    CLOSED = 5


# To read a member off its class is a call of Python's in 3.11, and these are read with every piece of data.
HEAD: Final = Phase.HEAD
DIALING: Final = Phase.DIALING
EXCHANGE: Final = Phase.EXCHANGE
SPLICED: Final = Phase.SPLICED
LINGERING: Final = Phase.LINGERING
CLOSED: Final = Phase.CLOSED
_UNAUTHORIZED: Final = 401
_NO_BODY: Final = Framing.NONE
_BY_LENGTH: Final = Framing.LENGTH


class CallerConnection:
    """Made by `Gateway.serve`; ended by the caller, by a deadline, by revocation or by `Gateway.close`."""

    __slots__ = (
        "address",
        "answered_at",
        "audit_id",
        "bytes_in",
        "bytes_out",
        "caller",
        "close_after",
        "connection_id",
        "deadline",
        "dial",
        "ending",
        "forward",
        "forwarded",
        "full",
        "gateway",
        "head",
        "held",
        "interim",
        "known",
        "loop",
        "outbox",
        "partial",
        "paused",
        "phase",
        "pool",
        "proven",
        "reader",
        "request_body",
        "response",
        "response_body",
        "retryable",
        "searched",
        "sequence",
        "started",
        "stem",
        "transport",
        "tunnel",
        "upstream",
        "upstream_ended",
        "upstream_is_full",
        "verdict",
    )

    def __init__(self, gateway: Gateway, caller_address: str, connection_id: str) -> None:
        self.gateway = gateway
        self.loop = gateway.loop
        self.address = caller_address
        self.connection_id = connection_id
        self.forwarded = b""
        self.caller = Caller()
        self.proven = False
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set before anything else can happen
        self.tunnel: Any = None  # the one that carries it, if any
        self.phase = HEAD
        self.stem = gateway.audit_stem()
        self.sequence = 0
        self.audit_id = self.stem + "0"
        self.held = bytearray()  # bytes of heads to come
        self.searched = 0
        self.deadline = float("inf")
        self.paused = False  # we do not read from the caller
        self.full = False  # the caller does not read from us
        self.upstream: Connection | None = None
        self.dial: asyncio.Task[None] | None = None
        self.reader = RequestReader()
        self.known: tuple[object, ...] = ()  # what the last verdict was made from
        self.verdict: Forward | Refuse | None = None
        self._reset()

    def _reset(self) -> None:
        """Forget the request that ended."""
        self.head: RequestHead | None = None
        self.forward: Forward | None = None
        self.pool: Pool | None = None
        self.request_body: Scanner | None = None
        self.response: ResponseHead | None = None
        self.response_body: Scanner | None = None
        self.outbox = b""
        self.partial = b""
        self.interim = 0
        self.retryable = False
        self.close_after = False
        self.upstream_is_full = False
        self.upstream_ended = False
        self.ending = -1  # a watch that is to end: what it had got when that was looked at last
        self.started = 0.0
        self.answered_at = 0.0
        self.bytes_in = 0
        self.bytes_out = 0

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

    def _idle_limit(self) -> float:
        """How long it may say nothing: a caller whom nobody has recognised yet holds a stream for a moment only."""
        return self.gateway.idle_limit if self.proven else self.gateway.head_deadline

    def eof_received(self) -> bool:
        if self.phase is SPLICED and not self.upstream_ended:
            assert self.upstream is not None
            self.upstream.transport.write_eof()
            self.deadline = self.loop.time() + self.gateway.idle_limit
            return True
        return False  # the transport closes; a request that is under way ends with it, as at the apiserver itself

    def connection_lost(self, exc: Exception | None) -> None:
        phase, self.phase = self.phase, CLOSED
        self.gateway.connections.discard(self)
        if self.dial is not None:
            self.dial.cancel()
            self.dial = None
        if phase in (DIALING, EXCHANGE, SPLICED):
            self._record(self.response.status if self.response is not None else CALLER_LEFT)
        self._drop_upstream()

    def pause_writing(self) -> None:
        self.full = True
        if self.upstream is not None:
            self.upstream.transport.pause_reading()

    def resume_writing(self) -> None:
        self.full = False
        if self.upstream is not None:
            self.upstream.transport.resume_reading()

    def _steer_reading(self) -> None:
        """Read from the caller only while what it sends has somewhere to go."""
        stop = (
            self.upstream_is_full
            or len(self.held) > defaults.MAX_HEAD_BYTES
            or (self.phase is DIALING and self.request_body is not None)
        )
        if stop is not self.paused:
            self.paused = stop
            if stop:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

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
        self.sequence += 1
        self.audit_id = f"{self.stem}{self.sequence:x}"
        self.bytes_in = len(raw)
        try:
            head = self.head = self.reader.parse(raw)
        except RequestError as error:
            self._refuse_malformed(error)
            return
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

    # -- the apiserver's side ----------------------------------------------------------------------------------------

    def upstream_data(self, data: memoryview) -> None:
        if self.phase is SPLICED:
            self.bytes_out += len(data)
            self.transport.write(data)
            return
        try:
            if self.response_body is not None:
                self._answer_bytes(data)
            else:
                self._answer_head(data)
        except AnswerError as error:
            self._fail(error)

    def _answer_head(self, data: memoryview) -> None:
        """Look for a whole head, and for the one behind it where it is an interim one."""
        self.retryable = False
        while self.phase is EXCHANGE:
            before = len(self.partial)
            block = self.partial + bytes(data[:_FIRST_LOOK])
            end = block.find(END, max(0, before - 3))
            if end < 0 and len(data) > _FIRST_LOOK:
                block = self.partial + bytes(data)
                end = block.find(END, max(0, before - 3))
            if end < 0 or end > defaults.MAX_HEAD_BYTES:
                if len(block) > defaults.MAX_HEAD_BYTES:
                    raise AnswerError(
                        f"the head of the apiserver's answer is larger than {defaults.MAX_HEAD_BYTES} bytes"
                    )
                self.partial = block
                return
            self.partial = b""
            assert self.head is not None
            head = parse_response(block[: end + 4], to_head=self.head.method == b"HEAD")
            if head.framing is _BY_LENGTH and not before and end + 4 + head.length == len(data) and self._passes(head):
                # The everyday answer: it came in one piece and leaves in one.
                self.answered_at = self.loop.time()
                if head.status != _UNAUTHORIZED:
                    self.proven = True
                self.response = head
                self.bytes_out += len(data)
                self.transport.write(data)
                self._finish(clean=True)
                return
            data = data[end + 4 - before :]
            if head.status >= 200 or head.status == SWITCHING:
                self._answer(head, data)
                return
            self._relay_interim(head)
            if not len(data):
                return

    def _passes(self, head: ResponseHead) -> bool:
        """Whether an answer may go as it is: nothing of the hop in its head, and neither side has reason to close."""
        request = self.head
        assert request is not None
        return (
            head.verbatim
            and head.status >= 200
            and request.keep_alive
            and request.minor == 1
            and request.upgrade is None
            and self.request_body is None
            and not self.leaving
        )

    def _relay_interim(self, head: ResponseHead) -> None:
        self.interim += 1
        if self.interim > MAX_INTERIM_ANSWERS:
            raise AnswerError("the apiserver sends interim answers without end")
        assert self.head is not None
        if self.head.minor == 1:
            self.transport.write(relayed_head(head, close=False))

    def _answer(self, head: ResponseHead, rest: memoryview) -> None:
        request = self.head
        assert request is not None
        self.answered_at = self.loop.time()
        if head.status == SWITCHING:
            self._splice(head, rest)
            return
        if request.upgrade is not None and head.status < 400:
            raise AnswerError(f"the apiserver answered an upgrade with {head.status}, which is not relayed")
        self.proven = self.proven or head.status != _UNAUTHORIZED
        body = scanner(head.framing, head.length, AnswerError)
        if body is not None and request.minor == 0 and not head.length and not isinstance(body, UntilClose):
            raise AnswerError("the apiserver answered an HTTP/1.0 request with a chunked body")
        unread = self.request_body is not None and request.expects_continue and not self.interim
        self.close_after = (
            not request.keep_alive
            or request.upgrade is not None
            or unread
            or isinstance(body, UntilClose)
            or self.leaving
        )
        out = relayed_head(head, close=self.close_after)
        self.response = head
        self.response_body = body
        if body is None:
            self.transport.write(out)
            self.bytes_out += len(out)
            self._finish(clean=not len(rest))
        elif len(rest) and len(rest) <= JOIN_BELOW:
            self._answer_bytes(rest, out)
        else:
            self.transport.write(out)
            self.bytes_out += len(out)
            if len(rest):
                self._answer_bytes(rest)

    def _answer_bytes(self, data: memoryview, before: bytes = b"") -> None:
        body = self.response_body
        assert body is not None
        try:
            piece, consumed = body.feed(data)
        except AnswerError:
            if before:
                self.transport.write(before)
            raise
        self.bytes_out += len(piece) + len(before)
        self.transport.write(before + piece if before else piece)
        if body.done:
            self._finish(clean=consumed == len(data))
        elif self.ending >= 0 and body.at_boundary and piece[-3:] == EVENT_END:
            self._end_watch()

    def _splice(self, head: ResponseHead, rest: memoryview) -> None:
        request, upstream = self.head, self.upstream
        assert request is not None
        assert upstream is not None
        if request.upgrade is None or head.upgrade is None:
            raise AnswerError("the apiserver switched protocols without being asked to, or without saying to which")
        self.phase = SPLICED
        self.response = head
        self.transport.write(switching_head(head))
        if len(rest):
            self.bytes_out += len(rest)
            self.transport.write(rest)
        if self.held:
            self.bytes_in += len(self.held)
            upstream.transport.write(bytes(self.held))
            self.held = bytearray()
        self._steer_reading()

    def _finish(self, *, clean: bool) -> None:
        """The answer is complete: give back or drop the connection, and go on or close."""
        request, response, upstream, pool = self.head, self.response, self.upstream, self.pool
        assert request is not None
        assert response is not None
        assert pool is not None
        now = self._record(response.status)
        whole = self.request_body is None
        if upstream is not None:
            self.upstream = None
            if clean and whole and response.keep_alive and request.minor == 1 and request.upgrade is None:
                if self.full:
                    upstream.transport.resume_reading()
                pool.release(upstream, now)
            else:
                pool.discard(upstream)
        if self.close_after or not whole:
            self._linger()
            return
        self._reset()
        self.phase = HEAD
        self.deadline = now + (self.gateway.idle_limit if self.proven else self.gateway.head_deadline)
        if self.paused or self.held:
            self._ready(now)

    def _ready(self, now: float) -> None:
        """Between two requests."""
        self.phase = HEAD
        self.deadline = now + self._idle_limit()
        if self.paused:
            self._steer_reading()
        if self.held:
            self.loop.call_soon(self._next)

    def _next(self) -> None:
        """A pipelined request, from a turn of its own so that one caller cannot keep the loop."""
        if self.phase is HEAD and self.held:
            held, self.held = bytes(self.held), bytearray()
            self._head_bytes(held)
            if self.paused:
                self._steer_reading()

    def upstream_eof(self) -> None:
        upstream = self.upstream
        assert upstream is not None
        truncated = bool(upstream.transport.get_extra_info("tls_truncated"))
        if self.phase is SPLICED and not truncated:
            self.upstream_ended = True
            self.deadline = self.loop.time() + self.gateway.idle_limit
            self.transport.write_eof()
        elif isinstance(self.response_body, UntilClose) and not truncated:
            self._finish(clean=False)
        else:
            self._upstream_gone()

    def upstream_lost(self, exc: Exception | None) -> None:
        if self.phase is SPLICED and self.upstream_ended:
            assert self.response is not None
            self.upstream = None
            self._record(self.response.status)
            self._linger()
            self.transport.close()
        elif self.phase in (EXCHANGE, SPLICED):
            self._upstream_gone()

    def _upstream_gone(self) -> None:
        upstream = self.upstream
        self._drop_upstream()
        if self.retryable and upstream is not None and upstream.served:
            self.retryable = False  # once
            self._dial_anew()
        else:
            self._fail(AnswerError("the apiserver closed the connection before its answer was complete"))

    def upstream_full(self, full: bool) -> None:
        self.upstream_is_full = full
        self._steer_reading()

    def _drop_upstream(self) -> None:
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.pool.discard(upstream)

    # -- ends --------------------------------------------------------------------------------------------------------

    def _refuse(self, verdict: Refuse, rest: bytes) -> None:
        """Answer in the apiserver's place; `rest` is what came behind the request, the next one where there is none."""
        head = self.head
        assert head is not None
        bodiless = not head.length and scanner(head.framing, head.length, RequestError) is None
        close = not (head.keep_alive and bodiless and head.upgrade is None) or self.leaving
        answer = status_response(
            verdict.status,
            verdict.message,
            code=verdict.code,
            reason=verdict.reason,
            mend=verdict.mend,
            head_only=head.method == b"HEAD",
            close=close,
            audit_id=self.audit_id,
        )
        self.transport.write(answer)
        self.bytes_out += len(answer)
        now = self._record(verdict.status, verdict.code)
        if close:
            self._linger()
        else:
            self._reset()
            self.held = bytearray(rest)
            self._ready(now)

    def _refuse_malformed(self, error: RequestError) -> None:
        """What follows a malformed request cannot be told from its body: the connection ends."""
        self._fail(error)

    def _fail(self, error: GatewayError) -> None:
        """Answer with the fault if an answer can still be given, else cut; the connection ends either way."""
        self._drop_upstream()
        if self.phase in (LINGERING, CLOSED):
            return
        if self.response is not None:
            self._record(self.response.status, error.code)
            self.phase = CLOSED
            self.transport.abort()
            return
        retry = 1.0 if error.http_status == 429 else None
        answer = fault_response(
            error.fault,
            error.message,
            retry_after=retry,
            head_only=self.head is not None and self.head.method == b"HEAD",
            audit_id=self.audit_id,
        )
        self.transport.write(answer)
        self.bytes_out += len(answer)
        self._record(error.http_status, error.code)
        self._linger()

    def _linger(self) -> None:
        self.phase = LINGERING
        self.held = bytearray()
        self.deadline = self.loop.time() + defaults.LINGER
        if self.paused:
            self.paused = False
            self.transport.resume_reading()
        self.transport.write_eof()

    def _record(self, code: int, fault: str = "") -> float:
        """Report the request; the time it took note of."""
        head, now, started = self.head, self.loop.time(), self.started
        verb, method, path = (
            named(head.method, head.target, head.upgrade is not None) if head is not None else ("other", "", "")
        )
        self.gateway.observer.request(
            RequestRecord(
                self.audit_id,
                self.connection_id,
                self.address,
                self.forward.who if self.forward is not None else self._who(),
                verb,
                method,
                path,
                code,
                fault,
                self.bytes_in,
                self.bytes_out,
                now - started if started else 0.0,
                self.answered_at - started if self.answered_at else 0.0,
            )
        )
        return now

    def _who(self) -> str:
        return self.caller.identity.user if self.caller.identity is not None else ""

    def tick(self, now: float, wall: float) -> None:
        """Look at the deadlines: the loop's time, and the wall's for the certificate."""
        identity = self.caller.identity
        if identity is not None and wall > identity.not_after:
            self.recheck()
        if now < self.deadline:
            return
        if self.phase is HEAD and self.held:
            self._fail(RequestError(f"the head was not complete within {self.gateway.head_deadline:g} s", "TWR408"))
        elif self.phase in (HEAD, LINGERING, SPLICED):  # spliced: half-closed for too long
            self.transport.close()

    def recheck(self) -> None:
        """End what runs if the caller's certificate is no longer good."""
        if self.caller.identity is None:
            return
        caller = self.gateway.recheck_caller(self.caller)
        refused = caller.refused
        if refused is None or self.phase in (LINGERING, CLOSED):
            return
        self.caller = caller
        if self.phase is HEAD:
            return  # the next request is told why
        self.cut(refused.code, refused.message)

    def cut(self, code: str, message: str) -> None:
        """End the request that is under way: by an answer if none was begun, else by breaking it off."""
        self._fail(GatewayError(code, message))

    @property
    def leaving(self) -> bool:
        """Whether the next answer is the last one: the gateway drains, or the tunnel that carries this connection."""
        return self.gateway.draining or (self.tunnel is not None and self.tunnel.draining)

    def drain(self) -> None:
        """Called again and again while `leaving`. A request that runs is the last one; between two, the connection
        closes after a moment, in which a request that was on its way is still answered. A watch ends cleanly between
        two events: behind a whole line, or once nothing has come since the last look.

        Only a watch, whose client asks again: an end put into a list would pass for the whole of it.
        """
        self.close_after = True
        if self.phase is HEAD and not self.held:
            self.deadline = min(self.deadline, self.loop.time() + DRAIN_IDLE)
        elif self.phase is EXCHANGE and self.response_body is not None and self._watches():
            if self.ending == self.bytes_out and self.response_body.at_boundary:
                self._end_watch()
            else:
                self.ending = self.bytes_out

    def _watches(self) -> bool:
        head = self.head
        return head is not None and verb_of(head.method, head.target, upgrade=head.upgrade is not None) == "watch"

    def _end_watch(self) -> None:
        assert self.response is not None
        self.transport.write(LAST_CHUNK)
        self._record(self.response.status)
        self._drop_upstream()
        self._linger()

    def abort(self) -> None:
        self.transport.abort()
