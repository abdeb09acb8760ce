"""One tunnel as a state machine: received bytes in, events out; the owner's calls in, bytes to send out. It opens no
socket, reads no clock and calls nobody back.

`multiplex` holds what concerns streams; this module holds what concerns the tunnel, its links and time. Invariants:
- When the peer breaks a rule, `receive` raises RemoteProtocolError. The owner then sends what `data_to_send` still
  gives (a CLOSE) and drops the link.
- Both ends count the numbered frames of each direction and acknowledge them; the number itself is not on the wire.
  With the feature `resume` such frames are kept until they are acknowledged, and a lost link leaves the session
  *detached*: it still takes the owner's calls but sends nothing, until `attach` gives it a new link or its window has
  passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from protocol import events
from protocol.constants import FEATURE_ACK, FEATURE_RESUME, FIRST_UNNUMBERED, FLAG_OPTIONAL, Code, FrameType
from protocol.defaults import KIB, MIB
from protocol.errors import HandshakeRejected, RemoteProtocolError
from protocol.events import Event
from protocol.flight import MARK_EVERY, Flight
from protocol.flow import Budget, Limits
from protocol.frames import U64, FrameDecoder, decode_reason, decode_u64, encode, encode_reason
from protocol.multiplex import RESET_BURST, RESET_RATE, Multiplex, goaway
from protocol.replay import Replay
from protocol.scheduler import Buffer
from protocol.streams import State, Stream

ACK_EVERY_FRAMES: Final = 64
ACK_EVERY_BYTES: Final = MIB
ACK_WITHIN: Final = 0.25
DEAF: Final = 2  # times `dead_after`: for a peer that sends but answers nothing, since its way back may only be full
NEVER: Final = float("inf")
EARLY: Final = 16 * KIB  # bytes that may leave on a full path: a small answer need not wait for the next PONG
RTT_PROBE_EVERY: Final = 1.0  # seconds, while data arrives: windows grow by recent measurements
_BOTH_FINISHED: Final = State.BOTH_FINISHED


class Session(Multiplex):
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
        super().__init__(opens_odd=opens_odd, accepts=accepts, limits=limits, budget=budget, now=now)
        self.features = frozenset(features)
        self.resumable = {FEATURE_ACK, FEATURE_RESUME} <= self.features
        self.epoch = 1  # counts the links
        self.frames_sent = 0  # numbered ones that have left
        self.frames_received = 0
        self.frames_acked = 0  # of ours, by the peer
        self._decoder = FrameDecoder()
        self._flight = Flight()
        self._replay = Replay(self.budget, limits.replay_bytes) if self.resumable else None
        self._link_lost = events.LinkLost(Code.TUNNEL_LOST, "")
        self._acked_received = 0
        self._bytes_to_ack = 0
        self._ack_at: float | None = None
        self._owed_at: float | None = None  # since when frames have waited for an ACK without progress
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

    @property
    def rtt(self) -> float | None:
        """The least of the last round trips, seconds."""
        return self._liveness.rtt

    @property
    def wants_to_send(self) -> bool:
        """Whether `data_to_send` has something."""
        if self.detached_at is not None:
            return False
        if self._outbox.frames or self._outbox.grants:
            return True
        replay = self._replay
        if replay is not None and replay.resending and not self.lost:
            return True
        return bool(self._scheduler.ready) and self._room > 0

    @property
    def _room(self) -> int:
        """Bytes of data that may leave now: what both `replay` has room to keep and `flight` has room to send, plus
        EARLY if the next stream has had no turn yet."""
        room = self._flight.room
        if self._scheduler.early:
            room += EARLY
        replay = self._replay
        return room if replay is None else min(room, replay.room)

    @property
    def pace(self) -> float:
        """Bytes a second at which a burst should leave; 0 for any."""
        return self._flight.pace

    @property
    def chunk(self) -> int:
        """How many bytes to ask `data_to_send` for at once: few on a slow link, since nothing overtakes what is out."""
        return self._scheduler.chunk

    def silence(self, now: float) -> float:
        """For how long nothing has come from the peer."""
        return now - self._liveness.heard_at

    def overdue(self, now: float) -> float:
        """For how long the peer has owed an answer, to frames or to a PING, without progress; 0 for none."""
        return now - min(now, self._owing_since())

    def ping(self, now: float) -> int:
        """Measure the round trip; RoundTrip will carry the returned token."""
        token = self._liveness.ask(now, linked=self.detached_at is None)
        self._queue(encode(FrameType.PING, 0, U64.pack(token)))
        return token

    def close(self, code: Code, text: str) -> None:
        """End the tunnel; the peer is told. Idempotent."""
        if self.lost is None:
            self._lose(code, text, by_peer=False)
            self._outbox.frames.append(encode_reason(FrameType.CLOSE, 0, code, text))

    def lose(self, code: Code, text: str) -> None:
        """The tunnel is over and nothing can be told any more. Idempotent."""
        if self.lost is None:
            self._lose(code, text, by_peer=False)

    # ---- links -------------------------------------------------------------------------------------------------------

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
        self._outbox.link_lost()
        self._liveness.link_lost()
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
        self._resets_left = min(RESET_BURST, self._resets_left) + RESET_RATE * max(0.0, self.silence(now))
        self._clock = now
        self._liveness.new_link(now)
        replay.acknowledge(peer_received - self.frames_acked)
        self.frames_acked = peer_received
        replay.begin()
        self._acked_received, self._bytes_to_ack = self.frames_received, 0  # as this end has said with its position
        if replay.resending:
            self._outbox.send_again(pieces[0] for _, _, pieces in replay.resending)
        for stream in self._streams.values():
            if stream.state in (State.OPEN, State.FINISHED):
                self._outbox.grants[stream.id] = stream.credit.granted
        if self._goaway is not None:
            code, text, until, retry_after = self._goaway
            self._outbox.frames.appendleft(goaway(code, text, until - now, retry_after))
        self.ping(now)

    # ---- bytes -------------------------------------------------------------------------------------------------------

    def receive(self, data: memoryview, now: float) -> list[Event]:
        """Take bytes from the link. RemoteProtocolError ends the tunnel; its CLOSE is then in `data_to_send`."""
        if self.lost or self.detached_at is not None:
            return []
        self._clock = self._liveness.heard_at = now
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
            if self._outbox.answers > self.limits.control_backlog:
                raise RemoteProtocolError(Code.FLOOD, "the peer asks faster than it reads the answers")
            if self._replay is not None and self._replay.overrun:
                raise RemoteProtocolError(Code.FLOOD, "the peer does not acknowledge the frames it receives")
        except RemoteProtocolError as error:
            self.close(error.code, error.text)
            raise
        if now - self._liveness.asked_at >= RTT_PROBE_EVERY and any(map(_is_data, self._events)):
            self.ping(now)
        self._schedule_ack(now)
        return self.take_events()

    def data_to_send(self, now: float, limit: int) -> list[Buffer]:
        """About `limit` bytes of whole frames to write now; empty when there is nothing."""
        if self.detached_at is not None:
            return []
        self._clock = now
        replay = self._replay
        again = replay is not None and bool(replay.resending)
        if self._flight.draining and self._scheduler.ready and now - self._liveness.asked_at >= MARK_EVERY:
            self.ping(now)  # ahead of data, or one would follow the other for as long as there is none
        out = self._take_control(again)
        if self.lost:
            return out
        if self._outbox.grants:
            self._outbox.take_grants(out)
        if self._ack_at is not None and out:
            out.append(self._ack())
        if again:
            assert replay is not None
            replay.resend(out, limit)
            if not replay.resending:
                self._outbox.caught_up()
        elif self._scheduler.ready:
            self._fill(out, limit, now)
        if self._owed_at is None and self.frames_sent > self.frames_acked and FEATURE_ACK in self.features:
            self._owed_at = now
        return out

    def _take_control(self, again: bool) -> list[Buffer]:
        """Frames other than data; numbered ones only after those that are sent again."""
        outbox, replay = self._outbox, self._replay
        if not outbox.frames:
            return []
        if again:
            return outbox.take_unnumbered()
        out = outbox.take()
        for frame in out:
            if frame[0] < FIRST_UNNUMBERED:
                self.frames_sent += 1
                if replay is not None:
                    replay.keep(frame)
        return list(out)

    def _fill(self, out: list[Buffer], limit: int, now: float) -> None:
        """Data, as far as it may be kept and be under way."""
        replay, scheduler, flight = self._replay, self._scheduler, self._flight
        room = min(limit, self._room)
        if room <= 0:
            return
        before = scheduler.total
        early = flight.room <= 0
        if replay is None:
            touched = scheduler.fill(out, room, now, early=early)
            self.budget.give(self._settle(touched))
        else:
            touched = scheduler.fill(out, room, now, replay.kept, early=early)
            replay.kept_data(len(touched), self._settle(touched))
        idle = not scheduler.ready
        if flight.sending(scheduler.total - before, now, idle=idle):
            mark = encode(FrameType.PING, 0, U64.pack(flight.mark(now, idle=idle)))
            self._outbox.frames.append(mark)  # the next to leave

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

    # ---- time --------------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `tick` wants to be called, on the clock of `now`; None when the tunnel is over."""
        if self.lost:
            return None
        if self.detached_at is not None:
            due = self.detached_at + self.limits.resume_window
        else:
            due = min(self._liveness.heard_at + self.limits.dead_after, self._liveness.due(self.limits.ping_interval))
            due = min(due, self._deaf_at())
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
        silent = self.silence(now)
        if silent >= self.limits.dead_after:
            self.detach(now, f"nothing heard from the peer for {silent:.1f} s", Code.DEAD_PEER)
            return self.take_events()
        deaf_at = self._deaf_at()
        if now >= deaf_at:
            owed = now - deaf_at + DEAF * self.limits.dead_after
            text = f"the peer sends, but has answered nothing for {owed:.1f} s"
            self.detach(now, text, Code.DEAD_PEER)
            return self.take_events()
        if now >= self._liveness.due(self.limits.ping_interval):
            self.ping(now)
        if self._ack_at is not None and now >= self._ack_at:
            self._queue_ack()
        self._expire_opens(now)
        return self.take_events()

    def _deaf_at(self) -> float:
        """When a peer that sends will have owed an answer for too long; infinity when it owes none."""
        return max(self._owing_since(), self._liveness.answered_at) + DEAF * self.limits.dead_after

    def _owing_since(self) -> float:
        """Since when the peer owes an answer, to frames or to a PING; infinity when it owes none."""
        return min(self._liveness.asked_since(NEVER), NEVER if self._owed_at is None else self._owed_at)

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

    # ---- frames that concern no stream -------------------------------------------------------------------------------

    def _receive_skip(self, stream: int, payload: memoryview, now: float) -> None:
        if payload:
            raise RemoteProtocolError(Code.PROTOCOL, "a SKIP with a payload")

    def _receive_ack(self, stream: int, payload: memoryview, now: float) -> None:
        acked = decode_u64(payload, "ACK")
        replay = self._replay
        sent = self.frames_sent if replay is None else self.frames_sent - len(replay.resending)
        if not self.frames_acked <= acked <= sent:
            raise RemoteProtocolError(Code.PROTOCOL, f"ACK of {acked} frames, expected {self.frames_acked} to {sent}")
        if acked > self.frames_acked:
            self._owed_at = now if acked < self.frames_sent else None
            self._liveness.answered_at = now
            if replay is not None:
                replay.acknowledge(acked - self.frames_acked)
        self.frames_acked = acked

    def _receive_ping(self, stream: int, payload: memoryview, now: float) -> None:
        decode_u64(payload, "PING")
        self._outbox.answers += 1
        self._queue(encode(FrameType.PONG, 0, bytes(payload)))

    def _receive_pong(self, stream: int, payload: memoryview, now: float) -> None:
        token = decode_u64(payload, "PONG")
        if self._flight.answered(token, now):
            self._scheduler.proven(self._flight.rate)
            self._liveness.answered_at = now
            return
        seconds = self._liveness.answered(token, now)
        if seconds is not None:
            self._flight.measured(seconds, now)
            self._events.append(events.RoundTrip(token, seconds))

    def _receive_close(self, stream: int, payload: memoryview, now: float) -> None:
        code, text = decode_reason(payload)
        self._lose(code, text, by_peer=True)

    # ---- small parts -------------------------------------------------------------------------------------------------

    def _lose(self, code: Code, text: str, *, by_peer: bool) -> None:
        self.lost = events.TunnelLost(code, text, by_peer)
        for stream in list(self._streams.values()):
            self._drop(stream)
        self._asked = 0
        self._outbox.frames.clear()
        self.detached_at = None
        if self._replay is not None:
            self._replay.clear()
        self._events.append(self.lost)

    def _schedule_ack(self, now: float) -> None:
        waiting = self.frames_received - self._acked_received
        if not waiting or FEATURE_ACK not in self.features:
            return
        if waiting >= ACK_EVERY_FRAMES or self._bytes_to_ack >= ACK_EVERY_BYTES:
            self._queue_ack()
        elif self._ack_at is None:
            self._ack_at = now + ACK_WITHIN

    def _queue_ack(self) -> None:
        self._outbox.put_ack(self._ack())

    def _ack(self) -> bytes:
        self._acked_received = self.frames_received
        self._bytes_to_ack = 0
        self._ack_at = None
        return encode(FrameType.ACK, 0, U64.pack(self.frames_received))


def _is_data(event: Event) -> bool:
    return type(event) is events.DataReceived
