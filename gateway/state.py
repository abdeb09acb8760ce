"""The state of one caller's connection and of its request under way, and every way in which either ends.

Invariants:
- A request is reported once when it ends, whatever ended it.
- An answer that is cut short is never ended cleanly towards the caller; a caller who has had none yet is told why.
"""

from __future__ import annotations

import asyncio
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from daemon.faults import of_cluster
from gateway.audit import RequestRecord, named, verb_of
from gateway.body import Scanner, scanner
from gateway.caller import Caller, Refuse
from gateway.decide import Forward
from gateway.errors import GatewayError, RequestError
from gateway.head import RequestHead, RequestReader, ResponseHead
from gateway.status import fault_response, status_response
from protocol import defaults

if TYPE_CHECKING:
    from gateway.proxy import Gateway
    from gateway.upstream import Connection, Pool

LAST_CHUNK: Final = b"0\r\n\r\n"
DRAIN_IDLE: Final = 1.0  # seconds for a request that is already on its way when the connection is to be closed
LEAST_BODY_RATE: Final = 4 * defaults.KIB  # bytes a second of a caller not known yet: a full, slow link brings that


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


class CallerState:
    """The base of `CallerConnection`: its fields, and how it ends. `AnswerRelay` is in between."""

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
        "opened",
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
        self.opened = gateway.loop.time()
        self.address = caller_address
        self.connection_id = connection_id
        self.forwarded = b""
        self.caller = Caller()
        self.proven = False
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set before anything else can happen
        self.tunnel: Any = None  # the tunnel that carries the connection, if any
        self.phase = HEAD
        self.stem = gateway.audit_stem()
        self.sequence = 0
        self.audit_id = self.stem + "0"
        self.held = bytearray()  # bytes received beyond the request under way: part of a head, or pipelined requests
        self.searched = 0
        self.deadline = float("inf")
        self.paused = False  # we do not read from the caller
        self.full = False  # the caller does not read from us
        self.upstream: Connection | None = None
        self.dial: asyncio.Task[None] | None = None
        self.reader = RequestReader()
        self.known: tuple[object, ...] = ()  # what `verdict` was decided from
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
        self.ending = -1  # `bytes_out` at the last look at a watch that is to end
        self.started = 0.0
        self.answered_at = 0.0
        self.bytes_in = 0
        self.bytes_out = 0

    # -- reading -----------------------------------------------------------------------------------------------------

    def _idle_limit(self) -> float:
        """How long the caller may be silent. One who is not authenticated yet may hold a stream for a moment only."""
        return self.gateway.idle_limit if self.proven else self.gateway.head_deadline

    @property
    def overstays(self) -> bool:
        """Whether the caller has used up the time to authenticate in, however many requests it made."""
        return not self.proven and self.loop.time() >= self.opened + self.gateway.head_deadline

    def _steer_reading(self) -> None:
        """Read from the caller only while what it sends has somewhere to go."""
        stop = (
            self.upstream_is_full
            or len(self.held) > defaults.MAX_HEAD_BYTES
            or (self.phase is DIALING and self.request_body is not None)
            or (self.phase is HEAD and self.full)  # who does not read asks for nothing more
        )
        if stop is not self.paused:
            self.paused = stop
            if stop:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def _ready(self, now: float) -> None:
        """Between two requests."""
        self.phase = HEAD
        self.deadline = now + self._idle_limit()
        if self.paused or self.full:
            self._steer_reading()
        if self.held:
            self.loop.call_soon(self._next)

    def _number(self) -> None:
        """A request has come: its audit id is no other's."""
        self.sequence += 1
        self.audit_id = f"{self.stem}{self.sequence:x}"

    def _next(self) -> None:
        """Take up a pipelined request."""
        raise NotImplementedError

    def _drop_upstream(self) -> None:
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.pool.discard(upstream)

    # -- ends --------------------------------------------------------------------------------------------------------

    def _refuse(self, verdict: Refuse, rest: bytes) -> None:
        """Answer in the apiserver's place; `rest` is what came behind its head: the next one, if it has no body."""
        head = self.head
        assert head is not None
        bodiless = not head.length and scanner(head.framing, head.length, RequestError) is None
        close = not (head.keep_alive and bodiless and head.upgrade is None) or self.leaving or self.overstays
        answer = status_response(
            verdict.status,
            verdict.message,
            code=verdict.code,
            reason=verdict.reason,
            mend=of_cluster(verdict.mend, self.gateway.cluster),
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
        """Answer and end the connection: nobody knows where a malformed request ends and the next one begins."""
        if self.head is None:  # not the request before
            self._number()
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
            mend=error.fault.mend_for(self.gateway.cluster),
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
        """Report the request; returns the loop's time."""
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
        """Act on deadlines: `now` is the loop's time, `wall` the wall clock's, by which certificates expire."""
        identity = self.caller.identity
        if identity is not None and wall > identity.not_after:
            self.recheck()
        if now < self.deadline:
            return
        if self.phase is HEAD and self.held and not self.full:
            self._refuse_malformed(
                RequestError(f"the head was not complete within {self.gateway.head_deadline:g} s", "TWR408")
            )
        elif self.phase in (HEAD, LINGERING, SPLICED):  # spliced: half-closed for too long
            self.transport.close()
        elif self.request_body is not None and not self.proven and not self.paused:
            # The apiserver refuses a token that it does not know once it has the body: that must come, too.
            self.deadline = self.started + self.gateway.head_deadline + self.bytes_in / LEAST_BODY_RATE
            if now >= self.deadline:
                text = f"the body came at less than {LEAST_BODY_RATE} bytes a second from a caller not known yet"
                self._refuse_malformed(RequestError(text, "TWR408"))

    def recheck(self) -> None:
        """End the request under way if the caller's certificate is no longer valid."""
        if self.caller.identity is None:
            return
        caller = self.gateway.recheck_caller(self.caller)
        refused = caller.refused
        if refused is None or self.phase in (LINGERING, CLOSED):
            return
        self.caller = caller
        self.cut(refused.code, refused.message)  # between two requests the next one is told why

    def cut(self, code: str, message: str) -> None:
        """End the request that is under way: by an answer if none was begun, else by breaking it off."""
        if self.phase is not HEAD:
            self._fail(GatewayError(code, message))

    @property
    def leaving(self) -> bool:
        """Whether the next answer is the last one: the gateway drains, or the tunnel that carries this connection."""
        return self.gateway.draining or (self.tunnel is not None and self.tunnel.draining)

    def drain(self) -> None:
        """Called repeatedly while `leaving`. An answer that begins now says that it is the last. Between requests the
        connection closes after a moment, so that a request already on its way is still answered. A watch ends
        cleanly between two events: behind a whole line, or once nothing has come since the last call.

        Nothing else is ended so: a client watches again, but would take a list that ends early for the whole list.
        """
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
