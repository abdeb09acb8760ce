"""One tunnel as a state machine: bytes in, events out; wishes in, bytes out. No socket, no clock, no callback.

Invariants:
- Every limit is checked before anything is registered or allocated; a peer that breaks a rule gets RemoteProtocolError
  from `receive`, after which the owner sends what `data_to_send` still gives (a CLOSE) and drops the link.
- A frame for a stream that was open once is discarded; for one that was never opened it is an error.
- Bytes that are received and not consumed, and bytes that wait to be sent, are charged to the tunnel's budget.
- Numbered frames are counted in both directions and acknowledged, without a number on the wire. With the feature
  `resume` they are kept until then, and a lost link leaves the session *detached*: it takes wishes and says nothing,
  until `attach` gives it a new link or its window has passed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from protocol import events
from protocol.constants import FEATURE_ACK, FEATURE_RESUME, FIRST_UNNUMBERED, FLAG_OPTIONAL, HEADER, Code, FrameType
from protocol.defaults import MIB
from protocol.errors import HandshakeRejected, LocalProtocolError, RemoteProtocolError
from protocol.events import Event
from protocol.flight import Flight
from protocol.flow import Budget, Limits, ReceiveCredit
from protocol.frames import (
    GOAWAY_BODY,
    MAX_TEXT_BYTES,
    U64,
    FrameDecoder,
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
from protocol.replay import Replay
from protocol.scheduler import Buffer, Scheduler
from protocol.streams import MAY_RECEIVE, MAY_SEND, TRANSITIONS, Input, State, Stream

MAX_STREAM_ID: Final = 2**31 - 1
_BOTH_FINISHED: Final = State.BOTH_FINISHED
ACK_EVERY_FRAMES: Final = 64
ACK_EVERY_BYTES: Final = MIB
ACK_WITHIN: Final = 0.25
RTT_SAMPLES: Final = 8
RTT_PROBE_EVERY: Final = 1.0  # while data arrives: windows grow by a fresh measure
RTT_STALE_AFTER: Final = 30.0  # on an idle tunnel
STALLED: Final = 64 * 1024  # bytes of a stream that wait for credit, or for their turn where memory is short
RESET_BURST: Final = 1024.0  # opens that the peer may cancel before they were answered
RESET_RATE: Final = 256.0  # a second, which refill it
LAST_IDS: Final = 3600.0  # for the streams of a tunnel that has no ids left
MAX_DEADLINE_MS: Final = 2**32 - 1


class Session:
    """Both ends' half of a tunnel.

    Args:
        opens_odd: True for the end whose streams have odd ids (the tower server); the other's are even.
        accepts: whether the peer may open streams at all; otherwise each OPEN is refused as FORBIDDEN.
        budget: the process' budget, in which the tunnel takes its own.
    """

    def __init__(
        self,
        *,
        opens_odd: bool,
        accepts: bool,
        limits: Limits,
        budget: Budget,
        now: float,
        features: Iterable[str] = (),
    ) -> None:
        self.limits = limits
        self.features = frozenset(features)
        self.budget = Budget(limits.tunnel_budget, budget)
        self.lost: events.TunnelLost | None = None
        self.draining = False  # this end takes no new streams
        self.peer_draining = False
        self.rtt: float | None = None  # the least of the last samples, seconds
        self.resumable = {FEATURE_ACK, FEATURE_RESUME} <= self.features
        self.epoch = 1  # counts the links
        self.detached_at: float | None = None  # since when there is no link
        self.frames_sent = 0  # numbered ones that have left
        self.frames_received = 0
        self.frames_acked = 0  # of ours, by the peer
        self._accepts = accepts
        self._next_id = 1 if opens_odd else 2
        self._peer_parity = 0 if opens_odd else 1
        self._highest_peer_id = 0
        self._streams: dict[int, Stream] = {}
        self._asked = 0
        self._opening: dict[int, Stream] = {}  # oldest first
        self._decoder = FrameDecoder()
        self._control: deque[bytes] = deque()
        self._answers = 0  # of `_control`, what the peer made this end say
        self._grants: dict[int, int] = {}
        self._late_grants: set[int] = set()  # streams whose OPEN_OK is still to be sent again
        self._replay = Replay(self.budget, limits.replay_bytes) if self.resumable else None
        self._link_lost = events.LinkLost(Code.TUNNEL_LOST, "")
        self._goaway: tuple[Code, str, float, float] | None = None
        self._clock = now  # the latest time that was heard of
        self._scheduler = Scheduler()
        self._flight = Flight()
        self._events: list[Event] = []
        self._rtts: deque[float] = deque(maxlen=RTT_SAMPLES)
        self._pings: dict[int, float] = {}
        self._next_ping = 1
        self._pinged_at = now
        self._heard_at = now
        self._acked_received = 0
        self._bytes_to_ack = 0
        self._ack_at: float | None = None
        self._owed_at: float | None = None  # since when frames wait for their ACK without any progress
        self._resets_left = RESET_BURST
        self._resets_at = now
        self._receivers: dict[int, Callable[[int, memoryview, float], None]] = {
            FrameType.OPEN: self._receive_open,
            FrameType.OPEN_OK: self._receive_open_ok,
            FrameType.OPEN_ERR: self._receive_open_err,
            FrameType.DATA: self._receive_data,
            FrameType.FIN: self._receive_fin,
            FrameType.RST: self._receive_rst,
            FrameType.ACK: self._receive_ack,
            FrameType.PING: self._receive_ping,
            FrameType.PONG: self._receive_pong,
            FrameType.GOAWAY: self._receive_goaway,
            FrameType.CREDIT: self._receive_credit,
            FrameType.CLOSE: self._receive_close,
        }
        if self.resumable:
            self._receivers[FrameType.SKIP] = self._receive_skip
        self.ping(now)

    # ---- what the owner asks ------------------------------------------------------------------------------------

    @property
    def stream_count(self) -> int:
        """Live streams, those that are being opened included."""
        return len(self._streams)

    @property
    def wants_to_send(self) -> bool:
        """Whether `data_to_send` has something."""
        if self.detached_at is not None:
            return False
        if self._control or self._grants:
            return True
        replay = self._replay
        if replay is None or self.lost:
            return bool(self._scheduler.ready) and self._flight.room > 0
        return bool(replay.resending) or (bool(self._scheduler.ready) and replay.room > 0 and self._flight.room > 0)

    @property
    def chunk(self) -> int:
        """Bytes to ask `data_to_send` for: no more than a slow link moves in a moment, since nothing overtakes them."""
        return self._scheduler.chunk

    def overdue(self, now: float) -> float:
        """For how long the peer has owed an answer, to frames or to a PING, without progress; 0 for none."""
        asked = next(iter(self._pings.values()), now)
        return now - (asked if self._owed_at is None else min(asked, self._owed_at))

    def queued(self, stream: int) -> int:
        """Bytes of a stream that wait for credit or their turn; 0 when it is gone."""
        found = self._streams.get(stream)
        return 0 if found is None else found.queued

    def flushed(self, stream: int) -> bool:
        """Whether all that was sent on a stream, its FIN included, was handed to the link and will be taken.

        Not before OPEN_OK: a reset would cancel the open together with the data that followed it.
        """
        found = self._streams.get(stream)
        return found is None or not (found.queued or found.fin_queued or stream in self._opening)

    def take_events(self) -> list[Event]:
        """Events that arose outside `receive` and `tick`."""
        taken, self._events = self._events, []
        return taken

    # ---- what the owner wants -----------------------------------------------------------------------------------

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
        if len(self._control) >= self.limits.control_backlog:
            raise LocalProtocolError(Code.TOO_MANY, f"{len(self._control)} frames wait for the link already")
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
        stream = Stream(stream_id, State.OPENING, service, credit, send_limit=self.limits.reserved_credit)
        stream.offered = now
        self._streams[stream_id] = stream
        self._opening[stream_id] = stream
        self._queue(frame)
        return stream_id

    def accept(self, stream: int) -> None:
        """Answer StreamOpened: yes."""
        found = self._need(stream, Input.S_OK)
        self._asked -= 1
        self._answers += 1
        if self._replay is not None and self._replay.resending:
            self._late_grants.add(stream)
        self._queue(encode(FrameType.OPEN_OK, stream, U64.pack(found.credit.granted)))

    def refuse(self, stream: int, code: Code, text: str) -> None:
        """Answer StreamOpened: no, and why."""
        found = self._need(stream, Input.S_ERR)
        self._asked -= 1
        self._answers += 1
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
        """Whether a stream above its reserve had better wait: its reader is slow or stopped, or it is one of many."""
        if stream.scheduled:
            return stream.queued > STALLED and not self.budget.spare
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
        if credit.granted - consumed > credit.window // 2:
            grant, credit.consumed = None, consumed  # nothing to announce, as nearly always
        else:
            grant = credit.consume(size, now, self.rtt)
        if grant is not None and state in MAY_RECEIVE and state is not State.ASKED:
            self._grants[stream] = grant  # in ASKED it is OPEN_OK that will tell
        if state is _BOTH_FINISHED:
            self._retire(found)

    def ping(self, now: float) -> int:
        """Measure the round trip; RoundTrip will carry the returned token."""
        token = self._next_ping
        self._next_ping += 1
        if self.detached_at is None and len(self._pings) < RTT_SAMPLES:
            self._pings[token] = now
        self._pinged_at = now
        self._queue(encode(FrameType.PING, 0, U64.pack(token)))
        return token

    def go_away(self, code: Code, text: str, *, deadline: float, retry_after: float) -> None:
        """Tell the peer to move: no new streams from now on, old ones end within `deadline` seconds. Idempotent."""
        if self.draining or self.lost:
            return
        self.draining = True
        self._goaway = (code, text, self._clock + deadline, retry_after)
        self._queue(_goaway(code, text, deadline, retry_after))

    def close(self, code: Code, text: str) -> None:
        """End the tunnel; the peer is told. Idempotent."""
        if self.lost is None:
            self._lose(code, text, by_peer=False)
            self._control.append(encode_reason(FrameType.CLOSE, 0, code, text))

    def lose(self, code: Code, text: str) -> None:
        """The tunnel is over and nothing can be told any more. Idempotent."""
        if self.lost is None:
            self._lose(code, text, by_peer=False)

    # ---- links --------------------------------------------------------------------------------------------------

    def detach(self, now: float, text: str, code: Code = Code.TUNNEL_LOST) -> None:
        """The link is gone, `text` says why: wait for another, or end the tunnel where that was not agreed. Idempotent.

        What was queued but not sent stays; so does every numbered frame that the peer has not acknowledged.
        """
        if self.lost or self.detached_at is not None:
            return
        if self._replay is None:
            self._lose(code, text, by_peer=False)
            return
        self.detached_at = self._clock = now
        self._link_lost = events.LinkLost(code, text)
        self._decoder = FrameDecoder()
        self._control = deque(frame for frame in self._control if frame[0] < FIRST_UNNUMBERED)
        self._grants.clear()
        self._late_grants.clear()
        self._pings.clear()
        self._ack_at = self._owed_at = None
        self._replay.resending.clear()
        self._scheduler.new_link()
        self._flight.reset()
        self._events.append(self._link_lost)

    def check_attach(self, peer_received: int, epoch: int) -> None:
        """Raise HandshakeRejected when `attach` would; nothing changes."""
        if self.lost:
            raise HandshakeRejected(Code.UNKNOWN_TUNNEL, f"the tunnel is over: {self.lost.text}")
        if self._replay is None:
            raise HandshakeRejected(Code.UNKNOWN_TUNNEL, "the tunnel was opened without the feature resume")
        if epoch <= self.epoch:
            raise HandshakeRejected(Code.STALE_LINK, f"link {epoch} of the tunnel, which is at {self.epoch} already")
        if not self.frames_acked <= peer_received <= self.frames_sent:
            text = f"{peer_received} frames received, expected {self.frames_acked} to {self.frames_sent}"
            raise HandshakeRejected(Code.POSITION, text)

    def attach(self, now: float, peer_received: int, *, epoch: int | None = None) -> None:
        """Go on over a new link, which carries again what comes after the frames that the peer has received.

        The older link's bytes must not come to `receive` any more. Credit, GOAWAY and PING are made anew.

        Raises:
            HandshakeRejected: UNKNOWN_TUNNEL, STALE_LINK or POSITION; nothing has changed.
        """
        epoch = self.epoch + 1 if epoch is None else epoch
        self.check_attach(peer_received, epoch)
        if self.detached_at is None:
            self.detach(now, "a newer link took its place")
        replay = self._replay
        assert replay is not None
        self.detached_at = None
        self.epoch = epoch
        # What was cancelled since the peer was heard last comes now, all at once.
        self._resets_left = min(RESET_BURST, self._resets_left) + RESET_RATE * (now - self._heard_at)
        self._clock = self._heard_at = self._pinged_at = now
        self._rtts.clear()
        replay.acknowledge(peer_received - self.frames_acked)
        self.frames_acked = peer_received
        replay.begin()
        self._acked_received, self._bytes_to_ack = self.frames_received, 0  # as this end has said with its position
        if replay.resending:
            for frame in (*(pieces[0] for _, _, pieces in replay.resending), *self._control):
                if frame[0] == FrameType.OPEN_OK:
                    self._late_grants.add(HEADER.unpack_from(frame)[3])
        for stream in self._streams.values():
            if stream.state in (State.OPEN, State.FINISHED):
                self._grants[stream.id] = stream.credit.granted
        if self._goaway is not None:
            code, text, until, retry_after = self._goaway
            self._control.appendleft(_goaway(code, text, until - now, retry_after))
        self.ping(now)

    # ---- bytes --------------------------------------------------------------------------------------------------

    def receive(self, data: memoryview, now: float) -> list[Event]:
        """Take bytes from the link. RemoteProtocolError ends the tunnel; its CLOSE is then in `data_to_send`."""
        if self.lost or self.detached_at is not None:
            return []
        self._clock = self._heard_at = now
        self._bytes_to_ack += len(data)
        try:
            for kind, flags, stream, payload in self._decoder.feed(data):
                if kind < FIRST_UNNUMBERED:
                    self.frames_received += 1
                receiver = self._receivers.get(kind)
                if receiver is None:
                    if flags & FLAG_OPTIONAL:
                        continue
                    raise RemoteProtocolError(Code.PROTOCOL, f"a frame of unknown type {kind}")
                receiver(stream, payload, now)
                if self.lost:
                    break
            if self._answers > self.limits.control_backlog:
                raise RemoteProtocolError(Code.FLOOD, "the peer asks faster than it reads the answers")
            if self._replay is not None and self._replay.overrun:
                raise RemoteProtocolError(Code.FLOOD, "the peer acknowledges nothing of what it is told")
        except RemoteProtocolError as error:
            self.close(error.code, error.text)
            raise
        self._schedule_ack(now)
        return self.take_events()

    def data_to_send(self, now: float, limit: int) -> list[Buffer]:
        """About `limit` bytes of whole frames to write now; empty when there is nothing."""
        if self.detached_at is not None:
            return []
        self._clock = now
        replay = self._replay
        again = replay is not None and bool(replay.resending)
        out = self._take_control(again)
        if self.lost:
            return out
        if self._grants:
            self._take_grants(out)
        if self._ack_at is not None and out:
            out.append(self._ack())
        if again:
            assert replay is not None
            replay.resend(out, limit)
            if not replay.resending:
                self._late_grants.clear()
        elif self._scheduler.ready:
            self._fill(out, limit, now)
        if self._owed_at is None and self.frames_sent > self.frames_acked and FEATURE_ACK in self.features:
            self._owed_at = now
        return out

    def _take_control(self, again: bool) -> list[Buffer]:
        """Frames other than data; numbered ones only after those that are sent again."""
        control, replay = self._control, self._replay
        if not control:
            return []
        if again:
            out: list[Buffer] = [frame for frame in control if frame[0] >= FIRST_UNNUMBERED]
            self._control = deque(frame for frame in control if frame[0] < FIRST_UNNUMBERED)
            self._answers = min(self._answers, len(self._control))
            return out
        out = list(control)
        for frame in control:
            if frame[0] < FIRST_UNNUMBERED:
                self.frames_sent += 1
                if replay is not None:
                    replay.keep(frame)
        control.clear()
        self._answers = 0
        return out

    def _take_grants(self, out: list[Buffer]) -> None:
        """CREDIT, which must not overtake the OPEN_OK of its stream."""
        late = self._late_grants
        out += [
            encode(FrameType.CREDIT, stream, U64.pack(to)) for stream, to in self._grants.items() if stream not in late
        ]
        self._grants = {stream: grant for stream, grant in self._grants.items() if stream in late}

    def _fill(self, out: list[Buffer], limit: int, now: float) -> None:
        """Data, as far as it may be kept and be under way."""
        replay, scheduler, flight = self._replay, self._scheduler, self._flight
        room = min(limit, flight.room) if replay is None else min(limit, flight.room, replay.room)
        if room <= 0:
            return
        before = scheduler.total
        if replay is None:
            touched = scheduler.fill(out, room, now)
            self.budget.give(self._settle(touched))
        else:
            touched = scheduler.fill(out, room, now, replay.kept)
            replay.kept_data(len(touched), self._settle(touched))
        idle = not scheduler.ready
        if flight.sending(scheduler.total - before, now, idle=idle):
            self._control.append(encode(FrameType.PING, 0, U64.pack(flight.mark(now, idle=idle))))  # the next to leave

    def _settle(self, touched: list[Stream]) -> int:
        """After frames left: tell waiting writers, retire finished streams. What the frames were charged for."""
        self.frames_sent += len(touched)
        freed = 0
        for stream in touched:
            freed += stream.charged - stream.queued
            stream.charged = stream.queued
            if stream.full and stream.queued <= self.limits.send_low:
                stream.full = False
                self._events.append(events.WritableAgain(stream.id))
            if stream.state is _BOTH_FINISHED:
                self._retire(stream)
        return freed

    # ---- time ---------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `tick` wants to be called, on the clock of `now`; None when the tunnel is over."""
        if self.lost:
            return None
        if self.detached_at is not None:
            due = self.detached_at + self.limits.resume_window
        else:
            due = min(self._heard_at + self.limits.dead_after, self._ping_due())
        if self._ack_at is not None:
            due = min(due, self._ack_at)
        if self._opening:
            due = min(due, next(iter(self._opening.values())).offered + self.limits.open_deadline)
        return due

    def tick(self, now: float) -> list[Event]:
        """Do what is due: pings, acknowledgements, opens that nobody answered, a silent peer, a window."""
        if self.lost:
            return []
        self._clock = now
        if self.detached_at is not None:
            if now - self.detached_at >= self.limits.resume_window:
                text = f"{self._link_lost.text}; no new link within {self.limits.resume_window:g} s"
                self._lose(self._link_lost.code, text, by_peer=False)
            self._expire_opens(now)
            return self.take_events()
        silent = now - self._heard_at
        if silent >= self.limits.dead_after:
            self.detach(now, f"nothing heard from the peer for {silent:.1f} s", Code.DEAD_PEER)
            return self.take_events()
        if now >= self._ping_due():
            self.ping(now)
        if self._ack_at is not None and now >= self._ack_at:
            self._queue_ack()
        self._expire_opens(now)
        return self.take_events()

    def _ping_due(self) -> float:
        silence = max(self._heard_at, self._pinged_at) + self.limits.ping_interval
        return min(silence, self._pinged_at + RTT_STALE_AFTER)

    def _expire_opens(self, now: float) -> None:
        while self._opening:
            first = next(iter(self._opening.values()))
            waited = now - first.offered
            if waited < self.limits.open_deadline:
                return
            text = f"the peer did not answer for {waited:.1f} s"
            if self.detached_at is not None:
                text += f": {self._link_lost.text}"
            self.reset(first.id, Code.CANCELLED, text)
            self._events.append(events.StreamRefused(first.id, Code.DIAL_TIMEOUT, text))

    # ---- frames received ----------------------------------------------------------------------------------------

    def _receive_open(self, stream: int, payload: memoryview, now: float) -> None:
        if stream % 2 != self._peer_parity or stream > MAX_STREAM_ID or stream <= self._highest_peer_id:
            raise RemoteProtocolError(Code.PROTOCOL, f"OPEN with stream id {stream}")
        body = decode_open(payload)
        self._highest_peer_id = stream
        refusal = self._refusal()
        if refusal is not None:
            self._answers += 1
            self._queue(encode_reason(FrameType.OPEN_ERR, stream, *refusal))
            return
        credit = ReceiveCredit(self.budget, self.limits)
        # Data that follows OPEN at once comes under the reserved share; OPEN_OK announces the whole.
        found = Stream(stream, State.ASKED, body.service, credit, send_limit=body.grant)
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
        if now - self._pinged_at >= RTT_PROBE_EVERY:
            self.ping(now)
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

    def _receive_skip(self, stream: int, payload: memoryview, now: float) -> None:
        if payload:
            raise RemoteProtocolError(Code.PROTOCOL, "a SKIP with a payload")

    def _stop_sending(self, stream: Stream) -> None:
        """The peer sent all it had and reads no more: an orderly end, once its data was passed on."""
        self._unqueue(stream)
        stream.state = State.BOTH_FINISHED
        if stream.full:
            stream.full = False
            self._events.append(events.WritableAgain(stream.id))  # a writer that waits may be the reader too
        self._retire(stream)

    def _count_cancelled(self, now: float) -> None:
        most = max(RESET_BURST, self._resets_left)
        self._resets_left = min(most, self._resets_left + (now - self._resets_at) * RESET_RATE)
        self._resets_at = now
        if self._resets_left < 1:
            raise RemoteProtocolError(Code.FLOOD, "streams are opened and cancelled faster than they can be answered")
        self._resets_left -= 1

    def _receive_ack(self, stream: int, payload: memoryview, now: float) -> None:
        acked = decode_u64(payload, "ACK")
        replay = self._replay
        sent = self.frames_sent if replay is None else self.frames_sent - len(replay.resending)
        if not self.frames_acked <= acked <= sent:
            raise RemoteProtocolError(Code.PROTOCOL, f"ACK of {acked} frames, expected {self.frames_acked} to {sent}")
        if acked > self.frames_acked:
            self._owed_at = now if acked < self.frames_sent else None
            if replay is not None:
                replay.acknowledge(acked - self.frames_acked)
        self.frames_acked = acked

    def _receive_ping(self, stream: int, payload: memoryview, now: float) -> None:
        decode_u64(payload, "PING")
        self._answers += 1
        self._queue(encode(FrameType.PONG, 0, bytes(payload)))

    def _receive_pong(self, stream: int, payload: memoryview, now: float) -> None:
        token = decode_u64(payload, "PONG")
        if self._flight.answered(token, now):
            return
        sent = self._pings.pop(token, None)
        if sent is None:
            return
        self._rtts.append(max(0.0, now - sent))
        self.rtt = min(self._rtts)
        self._flight.measured(self._rtts[-1], now)
        self._events.append(events.RoundTrip(token, self._rtts[-1]))

    def _receive_goaway(self, stream: int, payload: memoryview, now: float) -> None:
        if not GOAWAY_BODY.size <= len(payload) <= GOAWAY_BODY.size + MAX_TEXT_BYTES:
            raise RemoteProtocolError(Code.PROTOCOL, f"GOAWAY of {len(payload)} bytes")
        code, deadline, retry_after = GOAWAY_BODY.unpack_from(payload)
        if not self.peer_draining:
            self.peer_draining = True
            text = printable(str(payload[GOAWAY_BODY.size :], "utf-8", "replace"))
            self._events.append(events.GoingAway(decode_code(code), text, deadline / 1000, retry_after / 1000))

    def _receive_credit(self, stream: int, payload: memoryview, now: float) -> None:
        found = self._find(stream)
        if found is None:
            return
        if found.state in (State.OPENING, State.OPENING_FINISHED):
            raise RemoteProtocolError(Code.PROTOCOL, "CREDIT before OPEN_OK")
        self._raise_limit(found, decode_u64(payload, "CREDIT"))

    def _receive_close(self, stream: int, payload: memoryview, now: float) -> None:
        code, text = decode_reason(payload)
        self._lose(code, text, by_peer=True)

    # ---- small parts --------------------------------------------------------------------------------------------

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
        self._grants.pop(stream.id, None)
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
        """Let a stream go that is finished both ways, once everything was sent and passed on."""
        done = not stream.queued and not stream.fin_queued and stream.credit.consumed == stream.received
        if done and stream.id in self._streams:
            self._drop(stream)
            self._events.append(events.StreamClosed(stream.id))

    def _alive(self) -> None:
        if self.lost:
            raise LocalProtocolError(Code.TUNNEL_LOST, f"the tunnel is over: {self.lost.text}")

    def _lose(self, code: Code, text: str, *, by_peer: bool) -> None:
        self.lost = events.TunnelLost(code, text, by_peer)
        for stream in list(self._streams.values()):
            self._drop(stream)
        self._asked = 0
        self._control.clear()
        self.detached_at = None
        if self._replay is not None:
            self._replay.clear()
        self._events.append(self.lost)

    def _queue(self, frame: bytes) -> None:
        if self.lost is None and (self.detached_at is None or frame[0] < FIRST_UNNUMBERED):
            self._control.append(frame)

    # ---- acknowledgements ---------------------------------------------------------------------------------------

    def _schedule_ack(self, now: float) -> None:
        waiting = self.frames_received - self._acked_received
        if not waiting or FEATURE_ACK not in self.features:
            return
        if waiting >= ACK_EVERY_FRAMES or self._bytes_to_ack >= ACK_EVERY_BYTES:
            self._queue_ack()
        elif self._ack_at is None:
            self._ack_at = now + ACK_WITHIN

    def _queue_ack(self) -> None:
        control = self._control
        if control and control[-1][0] == FrameType.ACK:  # the peer does not read: the newest says it all
            control.pop()
        control.append(self._ack())

    def _ack(self) -> bytes:
        self._acked_received = self.frames_received
        self._bytes_to_ack = 0
        self._ack_at = None
        return encode(FrameType.ACK, 0, U64.pack(self.frames_received))


def _goaway(code: Code, text: str, *seconds: float) -> bytes:
    """A GOAWAY frame; `seconds` are its deadline and its retry-after."""
    times = (min(MAX_DEADLINE_MS, max(0, int(1000 * each))) for each in seconds)
    return encode(FrameType.GOAWAY, 0, GOAWAY_BODY.pack(code, *times) + cut(text))
