"""The streams of one tunnel: what the owner does with them and what the peer's frames do to them. No links here.

Invariants:
- Every limit is checked before anything is registered or allocated; a peer that breaks a rule gets RemoteProtocolError.
- A frame for a stream that has ended is discarded; a frame for one that was never opened is an error.
- Bytes that were received but not consumed, and bytes that wait to be sent, are charged to the tunnel's budget.
- A stream that is dropped gives back everything it holds, at once.
"""

from __future__ import annotations

from typing import Final

from protocol import events
from protocol.constants import FIRST_UNNUMBERED, Code, FrameType
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.events import Event
from protocol.flow import PROVEN, Budget, Limits, ReceiveCredit
from protocol.frames import (
    GOAWAY_BODY,
    MAX_TEXT_BYTES,
    U64,
    Open,
    cut,
    decode_code,
    decode_open,
    decode_reason,
    decode_u64,
    encode,
    encode_open,
    encode_reason,
    printable,
)
from protocol.liveness import Liveness
from protocol.outbox import Outbox
from protocol.scheduler import Buffer, Scheduler
from protocol.streams import MAY_RECEIVE, MAY_SEND, TRANSITIONS, Input, State, Stream

MAX_STREAM_ID: Final = 2**31 - 1
STALLED: Final = 64 * 1024  # bytes of one stream that wait for credit (or, where memory is short, for their turn)
RESET_BURST: Final = 1024.0  # opens that the peer may cancel before they were answered
RESET_RATE: Final = 256.0  # a second, at which that allowance refills
LAST_IDS: Final = 3600.0  # for the streams of a tunnel that has no ids left
MAX_DEADLINE_MS: Final = 2**32 - 1
_BOTH_FINISHED: Final = State.BOTH_FINISHED


class Multiplex:
    """The part of a session that concerns its streams. See `Session` for the arguments."""

    def __init__(self, *, opens_odd: bool, accepts: bool, limits: Limits, budget: Budget, now: float) -> None:
        self.limits = limits
        self.budget = Budget(limits.tunnel_budget, budget)
        self.lost: events.TunnelLost | None = None
        self.detached_at: float | None = None  # since when there is no link
        self.draining = False  # this end takes no new streams
        self.peer_draining = False
        self._accepts = accepts
        self._next_id = 1 if opens_odd else 2
        self._peer_parity = 0 if opens_odd else 1
        self._highest_peer_id = 0
        self._streams: dict[int, Stream] = {}
        self._asked = 0  # streams that the peer has opened and the owner has not answered
        self._opening: dict[int, Stream] = {}  # oldest first
        self._outbox = Outbox()
        self._liveness = Liveness(now)
        self._scheduler = Scheduler()
        self._events: list[Event] = []
        self._goaway: tuple[Code, str, float, float] | None = None
        self._clock = now  # the latest time that was passed in
        self._resets_left = RESET_BURST
        self._resets_at = now

    @property
    def stream_count(self) -> int:
        """Live streams, those that are being opened included."""
        return len(self._streams)

    def queued(self, stream: int) -> int:
        """Bytes of a stream that wait for credit or their turn; 0 when it is gone."""
        found = self._streams.get(stream)
        return 0 if found is None else found.queued

    def flushed(self, stream: int) -> bool:
        """Whether everything sent on a stream, its FIN included, was handed to the link and will be accepted.

        Not before OPEN_OK: a reset would cancel the open together with the data that followed it.
        """
        found = self._streams.get(stream)
        return found is None or not (found.queued or found.fin_queued or stream in self._opening)

    def take_events(self) -> list[Event]:
        """Events that arose outside `receive` and `tick`."""
        taken, self._events = self._events, []
        return taken

    # ---- what the owner wants ----------------------------------------------------------------------------------------

    def open(self, service: str, now: float, *, caller: str = "", connection_id: str = "") -> int:
        """Ask the peer for a stream; data may follow at once. The new stream's id.

        Raises:
            LocalProtocolError: TUNNEL_LOST, DRAINING, TOO_MANY, BUDGET, or PROTOCOL for a name that cannot be sent.
        """
        self._alive()
        if self._next_id > MAX_STREAM_ID:
            # Only another tunnel helps: have the peer make one, rather than refuse for ever.
            self.go_away(Code.DRAINING, "the tunnel's stream ids are used up", deadline=LAST_IDS, retry_after=0)
        if self.peer_draining or self.draining:
            raise LocalProtocolError(Code.DRAINING, "the tunnel is draining and takes no new streams")
        if len(self._streams) >= self.limits.max_streams:
            raise LocalProtocolError(Code.TOO_MANY, f"the tunnel has its {self.limits.max_streams} streams")
        if len(self._outbox.frames) >= self.limits.control_backlog:
            waiting = len(self._outbox.frames)
            raise LocalProtocolError(Code.TOO_MANY, f"{waiting} frames wait for the link already")
        if len(self._opening) >= self.limits.open_backlog:
            raise LocalProtocolError(Code.TOO_MANY, f"{len(self._opening)} opens wait for the peer's answer already")
        if self.budget.free < self.limits.reserved_credit:
            raise LocalProtocolError(Code.BUDGET, "the memory budget has no room for another stream")
        stream_id = self._next_id
        credit = ReceiveCredit(self.budget, self.limits)
        try:
            frame = encode_open(stream_id, Open(credit.granted, service, caller, connection_id))
        except ValueError as error:
            credit.release()
            raise LocalProtocolError(Code.PROTOCOL, str(error)) from error
        self._next_id += 2
        stream = Stream(stream_id, State.OPENING, credit, send_limit=self.limits.reserved_credit)
        stream.offered = now
        self._streams[stream_id] = stream
        self._opening[stream_id] = stream
        self._queue(frame)
        return stream_id

    def accept(self, stream: int) -> None:
        """Answer StreamOpened: yes."""
        found = self._need(stream, Input.S_OK)
        self._asked -= 1
        self._outbox.accepted(stream)
        self._queue(encode(FrameType.OPEN_OK, stream, U64.pack(found.credit.granted)))

    def refuse(self, stream: int, code: Code, text: str) -> None:
        """Answer StreamOpened: no, and why."""
        found = self._need(stream, Input.S_ERR)
        self._asked -= 1
        self._outbox.answers += 1
        self._drop(found)
        self._queue(encode_reason(FrameType.OPEN_ERR, stream, code, text))

    def send(self, stream: int, data: Buffer) -> bool:
        """Queue bytes, which must not change any more: they are kept as they are. False: pause until WritableAgain."""
        found = self._streams.get(stream)
        if found is None or found.state not in MAY_SEND:
            raise LocalProtocolError(Code.PROTOCOL, f"stream {stream} takes no more data")
        if size := len(data):
            found.queue.append(data)
            found.queued += size
            found.charged += size
            self.budget.charge(size)
            if not found.scheduled:
                self._scheduler.schedule(found)
        queued, limits = found.queued, self.limits
        if queued > limits.send_high or (queued and self.budget.full):
            found.full = True
        elif queued > limits.reserved_credit and not found.full:
            found.full = self._keeps_from_others(found)
        return not found.full

    def _keeps_from_others(self, stream: Stream) -> bool:
        """Whether a stream above its reserve should wait for others: its reader is slow, or it is one of many."""
        if stream.scheduled:  # the peer takes it, and one that has taken much is worth more than 64 KiB a turn
            return stream.queued > STALLED and stream.sent < PROVEN and not self.budget.spare
        return stream.queued > STALLED or not self.budget.spare

    def finish(self, stream: int) -> None:
        """No more data from this end. Idempotent."""
        found = self._streams.get(stream)
        if found is None or found.state not in MAY_SEND:
            return
        self._move(found, Input.S_FIN)
        found.fin_queued = True
        self._scheduler.schedule(found)

    def reset(self, stream: int, code: Code, text: str = "") -> None:
        """Drop a stream in both directions, queued data included. Idempotent.

        After this end's FIN has left, code NONE says: nothing was lost, and nothing more will be read.
        """
        found = self._streams.get(stream)
        if found is None:
            return
        if found.state in (State.ASKED, State.ASKED_FINISHED):
            self._asked -= 1
        orderly = code is Code.NONE and found.state in (State.FINISHED, State.BOTH_FINISHED) and not found.fin_queued
        found.cut = not orderly
        self._move(found, Input.S_RST)
        self._drop(found)
        self._queue(encode_reason(FrameType.RST, stream, code, text))

    def consume(self, stream: int, size: int, now: float) -> None:
        """`size` received bytes were passed on: their credit may go back to the peer."""
        found = self._streams.get(stream)
        if found is None:
            return
        credit, state = found.credit, found.state
        consumed = credit.consumed + size
        if consumed > found.received:
            raise LocalProtocolError(Code.FLOW, f"stream {stream}: more consumed than was received")
        if credit.granted - consumed > credit.renew_below:
            grant, credit.consumed = None, consumed  # nothing to announce, as nearly always
        else:
            grant = credit.consume(size, now, self._liveness.rtt)
        if grant is not None and state in MAY_RECEIVE and state is not State.ASKED:
            self._outbox.grants[stream] = grant  # in ASKED, OPEN_OK will announce it
        if state is _BOTH_FINISHED:
            self._retire(found)

    def go_away(self, code: Code, text: str, *, deadline: float, retry_after: float) -> None:
        """Tell the peer to move: no new streams from now on, old ones end within `deadline` seconds. Idempotent."""
        if self.draining or self.lost:
            return
        self.draining = True
        self._goaway = (code, text, self._clock + deadline, retry_after)
        self._queue(goaway(code, text, deadline, retry_after))

    # ---- what the peer says ------------------------------------------------------------------------------------------

    def _receive_open(self, stream: int, payload: memoryview, now: float) -> None:
        if stream % 2 != self._peer_parity or stream > MAX_STREAM_ID or stream <= self._highest_peer_id:
            raise RemoteProtocolError(Code.PROTOCOL, f"OPEN with stream id {stream}")
        body = decode_open(payload)
        self._highest_peer_id = stream
        refusal = self._refusal()
        if refusal is not None:
            self._outbox.answers += 1
            self._queue(encode_reason(FrameType.OPEN_ERR, stream, *refusal))
            return
        credit = ReceiveCredit(self.budget, self.limits)
        # Data that follows OPEN at once comes under the reserved share; OPEN_OK announces the whole.
        found = Stream(stream, State.ASKED, credit, send_limit=body.grant)
        found.offered = now
        self._streams[stream] = found
        self._asked += 1
        self._events.append(events.StreamOpened(stream, body.service, body.caller, body.connection_id))

    def _refusal(self) -> tuple[Code, str] | None:
        if not self._accepts:
            return Code.FORBIDDEN, "this end accepts no streams"
        if self.draining:
            return Code.DRAINING, "draining: open it on another tunnel"
        if len(self._streams) >= self.limits.max_streams:
            return Code.TOO_MANY, f"the tunnel has its {self.limits.max_streams} streams"
        if self._asked >= self.limits.open_backlog:
            return Code.TOO_MANY, f"{self._asked} opens wait for an answer already"
        if self.budget.free < self.limits.reserved_credit:
            return Code.BUDGET, "the memory budget has no room for another stream"
        return None

    def _receive_open_ok(self, stream: int, payload: memoryview, now: float) -> None:
        found = self._find(stream)
        if found is None:
            return
        grant = decode_u64(payload, "OPEN_OK")
        self._move(found, Input.R_OK)
        del self._opening[stream]
        self._events.append(events.StreamAccepted(stream))
        self._raise_limit(found, grant)

    def _receive_open_err(self, stream: int, payload: memoryview, now: float) -> None:
        found = self._find(stream)
        if found is None:
            return
        code, text = decode_reason(payload)
        found.cut = True
        self._move(found, Input.R_ERR)
        self._drop(found)
        self._events.append(events.StreamRefused(stream, code, text))

    def _receive_data(self, stream: int, payload: memoryview, now: float) -> None:
        found = self._streams.get(stream)
        if found is None:
            self._find(stream)
            return
        size = len(payload)
        if found.state not in MAY_RECEIVE or not size:
            raise RemoteProtocolError(Code.PROTOCOL, f"{size} bytes of DATA on a stream that is {found.state.value}")
        found.received += size
        if found.received > found.credit.granted:
            over = found.received - found.credit.granted
            raise RemoteProtocolError(Code.FLOW, f"stream {stream}: {over} bytes more than were granted")
        self._events.append(events.DataReceived(stream, payload))

    def _receive_fin(self, stream: int, payload: memoryview, now: float) -> None:
        found = self._find(stream)
        if found is None:
            return
        if payload:
            raise RemoteProtocolError(Code.PROTOCOL, "a FIN with a payload")
        self._move(found, Input.R_FIN)
        self._events.append(events.StreamFinished(stream))
        if found.state is State.BOTH_FINISHED:
            self._retire(found)

    def _receive_rst(self, stream: int, payload: memoryview, now: float) -> None:
        found = self._find(stream)
        if found is None:
            return
        code, text = decode_reason(payload)
        found.cut = True
        if found.state in (State.ASKED, State.ASKED_FINISHED):
            self._asked -= 1
            self._count_cancelled(now)
        elif code is Code.NONE and found.state in (State.PEER_FINISHED, State.BOTH_FINISHED):
            self._stop_sending(found)
            return
        self._move(found, Input.R_RST)
        self._drop(found)
        self._events.append(events.StreamReset(stream, code, text))

    def _stop_sending(self, stream: Stream) -> None:
        """The peer has sent all and reads no more (RST with NONE): an orderly end, once its data was passed on."""
        self._unqueue(stream)
        stream.state = State.BOTH_FINISHED
        if stream.full:
            stream.full = False
            self._events.append(events.WritableAgain(stream.id))  # a writer that waits may be the reader too
        self._retire(stream)

    def _count_cancelled(self, now: float) -> None:
        most = max(RESET_BURST, self._resets_left)
        self._resets_left = min(most, self._resets_left + max(0.0, now - self._resets_at) * RESET_RATE)
        self._resets_at = now
        if self._resets_left < 1:
            raise RemoteProtocolError(Code.FLOOD, "streams are opened and cancelled faster than they can be answered")
        self._resets_left -= 1

    def _receive_credit(self, stream: int, payload: memoryview, now: float) -> None:
        found = self._find(stream)
        if found is None:
            return
        if found.state in (State.OPENING, State.OPENING_FINISHED):
            raise RemoteProtocolError(Code.PROTOCOL, "CREDIT before OPEN_OK")
        self._raise_limit(found, decode_u64(payload, "CREDIT"))

    def _receive_goaway(self, stream: int, payload: memoryview, now: float) -> None:
        if not GOAWAY_BODY.size <= len(payload) <= GOAWAY_BODY.size + MAX_TEXT_BYTES:
            raise RemoteProtocolError(Code.PROTOCOL, f"GOAWAY of {len(payload)} bytes")
        code, deadline, retry_after = GOAWAY_BODY.unpack_from(payload)
        if not self.peer_draining:
            self.peer_draining = True
            text = printable(str(payload[GOAWAY_BODY.size :], "utf-8", "replace"))
            self._events.append(events.GoingAway(decode_code(code), text, deadline / 1000, retry_after / 1000))

    # ---- small parts -------------------------------------------------------------------------------------------------

    def _find(self, stream: int) -> Stream | None:
        """The live stream; None when it was open once; RemoteProtocolError when it never was."""
        found = self._streams.get(stream)
        if found is None:
            last = self._highest_peer_id if stream % 2 == self._peer_parity else self._next_id - 2
            if not 0 < stream <= last:
                raise RemoteProtocolError(Code.PROTOCOL, f"a frame for stream {stream}, which was never opened")
        return found

    def _need(self, stream: int, what: Input) -> Stream:
        """The stream after the owner did `what`; LocalProtocolError when its state does not allow it."""
        found = self._streams.get(stream)
        state = State.CLOSED if found is None else found.state
        if found is None or (state, what) not in TRANSITIONS:
            raise LocalProtocolError(Code.PROTOCOL, f"cannot {what.value} on stream {stream}: it is {state.value}")
        found.state = TRANSITIONS[state, what]
        return found

    def _move(self, stream: Stream, what: Input) -> None:
        try:
            stream.state = TRANSITIONS[stream.state, what]
        except KeyError:
            raise RemoteProtocolError(
                Code.PROTOCOL, f"cannot {what.value} on stream {stream.id}: it is {stream.state.value}"
            ) from None

    def _raise_limit(self, stream: Stream, grant: int) -> None:
        if grant > stream.send_limit:
            stream.send_limit = grant
            self._scheduler.schedule(stream)

    def _drop(self, stream: Stream) -> None:
        """Free everything a stream holds, at once."""
        self._unqueue(stream)
        self._outbox.grants.pop(stream.id, None)
        self._opening.pop(stream.id, None)
        stream.state = State.CLOSED
        stream.credit.release()
        del self._streams[stream.id]

    def _unqueue(self, stream: Stream) -> None:
        """Forget what waits to be sent."""
        self._scheduler.remove(stream)
        stream.queue.clear()
        stream.queued = 0
        self.budget.give(stream.charged)
        stream.charged = 0
        stream.fin_queued = False

    def _retire(self, stream: Stream) -> None:
        """Drop a stream that is finished both ways, once everything was sent and passed on."""
        done = not stream.queued and not stream.fin_queued and stream.credit.consumed == stream.received
        if done and stream.id in self._streams:
            self._drop(stream)
            self._events.append(events.StreamClosed(stream.id))

    def _alive(self) -> None:
        if self.lost:
            raise LocalProtocolError(Code.TUNNEL_LOST, f"the tunnel is over: {self.lost.text}")

    def _queue(self, frame: bytes) -> None:
        if self.lost is None and (self.detached_at is None or frame[0] < FIRST_UNNUMBERED):
            self._outbox.frames.append(frame)


def goaway(code: Code, text: str, *seconds: float) -> bytes:
    """A GOAWAY frame; `seconds` are its deadline and its retry-after."""
    times = (min(MAX_DEADLINE_MS, max(0, int(1000 * each))) for each in seconds)
    return encode(FrameType.GOAWAY, 0, GOAWAY_BODY.pack(code, *times) + cut(text))
