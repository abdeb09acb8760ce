"""The apiserver's side of a request: relays its answer to the caller, or splices the two connections after an upgrade.

Invariants:
- The connection to the apiserver is reused only when request and answer both ended exactly where their framing says.
- An answer that came whole in one piece leaves in one write, unchanged.
"""

from __future__ import annotations

from typing import Final

from gateway.answer import SWITCHING, relayed_head, switching_head
from gateway.body import UntilClose, scanner
from gateway.decide import PoolName
from gateway.errors import AnswerError
from gateway.head import END, Framing, ResponseHead, parse_response
from gateway.state import EXCHANGE, HEAD, SPLICED, CallerState
from protocol import defaults
from protocol.jsontext import parse_object

MAX_INTERIM_ANSWERS: Final = 16
EVENT_END: Final = b"\n\r\n"  # of a chunk that ends with a whole line
JOIN_BELOW: Final = 16 * defaults.KIB  # head and body of an answer leave in one record up to here
_FIRST_LOOK: Final = 4 * defaults.KIB  # where the end of an answer's head is looked for first
_UNAUTHORIZED: Final = 401
_ERRORS: Final = 400
_OF_KNOWN_CALLERS: Final = frozenset({403, 404, 409, 422})  # errors that come only behind authentication
_OWN_401: Final = ("Status", "Unauthorized")
_PROTOBUF: Final = b"k8s\0"  # what Kubernetes' protobuf begins with
_BY_LENGTH: Final = Framing.LENGTH


class AnswerRelay(CallerState):
    """The middle of a `CallerConnection`: the `Exchange` of one connection to the apiserver."""

    __slots__ = ()

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
            if head.status == _UNAUTHORIZED and self._refuses_the_agent(data[end + 4 - before :]):
                raise AnswerError("the apiserver answered 401 to the agent's own credential", "TWR305")
            if head.framing is _BY_LENGTH and not before and end + 4 + head.length == len(data) and self._passes(head):
                # The everyday answer: it came in one piece and leaves in one.
                self.answered_at = self.loop.time()
                self._recognised(head.status)
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

    def _refuses_the_agent(self, body: memoryview) -> bool:
        """Whether a 401 is the apiserver's own word on the credential that the agent showed. What is behind it (a
        service that it proxies) answers for itself, and a bearer caller's 401 is the caller's."""
        forward, head = self.forward, self.head
        if forward is None or forward.pool is not PoolName.IMPERSONATION or head is None or b"/proxy" in head.target:
            return False
        said = bytes(body[:JOIN_BELOW])
        if said.startswith(_PROTOBUF):
            return b"Status" in said and b"Unauthorized" in said
        try:
            document = parse_object(said)
        except ValueError:
            return False
        return (document.get("kind"), document.get("reason")) == _OWN_401

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
            and (self.proven or not self.overstays)
            and not self.gateway.draining
            and not (self.tunnel is not None and self.tunnel.draining)
        )

    def _recognised(self, status: int) -> None:
        """Take note of what the answer says of a bearer caller. Some errors come before the apiserver has looked at the
        token (400 for a bad `timeout`), and so do answers to a preflight. A caller without rights is a known one."""
        assert self.head is not None
        if (status < _ERRORS or status in _OF_KNOWN_CALLERS) and self.head.method != b"OPTIONS":
            self.proven = True

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
        self._recognised(head.status)
        body = scanner(head.framing, head.length, AnswerError)
        if body is not None and request.minor == 0 and not head.length and not isinstance(body, UntilClose):
            raise AnswerError("the apiserver answered an HTTP/1.0 request with a chunked body")
        self.close_after = (
            not request.keep_alive
            or request.upgrade is not None
            or self.request_body is not None  # an answer to half a request: nobody will read the other half
            or isinstance(body, UntilClose)
            or self.leaving
            or self.overstays
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
        if self.paused or self.held or self.full:
            self._ready(now)

    def upstream_eof(self) -> None:
        """What came over an upgraded connection is passed on whole, also where close_notify is missing: Go gives up on
        sending that to a slow reader. The protocols that run there say themselves whether they are complete."""
        truncated = bool(self._cut_short())
        if self.phase is SPLICED:
            self.upstream_ended = True
            self.deadline = self.loop.time() + self.gateway.idle_limit
            self.transport.write_eof()
        elif isinstance(self.response_body, UntilClose) and not truncated:
            self._finish(clean=False)
        else:
            self._upstream_gone()

    def _cut_short(self) -> str:
        """The fault of an apiserver's connection that ended without saying so."""
        upstream = self.upstream
        return "TWR306" if upstream is not None and upstream.transport.get_extra_info("tls_truncated") else ""

    def upstream_lost(self, exc: Exception | None) -> None:
        if self.phase is SPLICED and self.upstream_ended:
            assert self.response is not None
            fault = self._cut_short()
            self.upstream = None
            self._record(self.response.status, fault)
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

    def _dial_anew(self) -> None:
        """Send the request again, over a new connection."""
        raise NotImplementedError
