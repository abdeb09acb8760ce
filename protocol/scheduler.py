"""Which frame leaves next: control frames first, then data by deficit round robin over the streams that may send.

Frames are chosen only when the link asks for bytes, so that a small answer does not wait behind bulk data that was
queued earlier. Nor does it wait for a full round: a stream that has not used up its quantum in this round goes before
those that have. While several streams compete for a slow link, a DATA frame carries at most what the link moves in
50 ms.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from protocol.constants import HEADER, FrameType
from protocol.defaults import KIB, MAX_FRAME_PAYLOAD
from protocol.streams import Stream

QUANTUM: Final = 64 * KIB
FAST: Final = 4  # quanta in a turn, on a fast link
FRAME_SECONDS: Final = 0.05
MIN_FRAME: Final = 2 * KIB
RATE_GAIN: Final = 0.25  # weight of a new sample in the link's rate

CHUNK: Final = 256 * KIB  # handed to a link at a time
LEAST_CHUNK: Final = 16 * KIB
CHUNK_SECONDS: Final = 0.005

FRAME_COST: Final = 256  # bytes that keeping a frame takes beside its payload

_DATA: Final = int(FrameType.DATA)

Buffer = bytes | memoryview
Kept = tuple[int, Stream | None, list[Buffer]]  # a frame that has left: its size, whose DATA or FIN it is, its pieces


class Scheduler:
    """The streams that have something to send and may, in their order, and the link's measured rate."""

    __slots__ = ("_backlogged_since", "_first", "_moved", "rate", "ready", "total", "turn")

    def __init__(self) -> None:
        self.ready: deque[Stream] = deque()  # those that may send now, in their order
        self.total = 0  # bytes that have left
        self.turn = 0  # counts quanta that were used up
        self._first = 0  # so many of `ready` have not had theirs in this round
        self._backlogged_since: float | None = None
        self._moved = 0
        self.rate: float | None = None  # bytes a second, measured while the link was the bottleneck

    @property
    def chunk(self) -> int:
        """Bytes that a link gets at a time: on a slow one what it moves in CHUNK_SECONDS."""
        rate = self.rate
        return CHUNK if rate is None else max(LEAST_CHUNK, min(CHUNK, int(rate * CHUNK_SECONDS)))

    @property
    def quantum(self) -> int:
        """Bytes of a stream's turn: on a link that moves a whole chunk in CHUNK_SECONDS a chunk, so that what is read
        there at once is of one stream, and is passed on in one write."""
        return QUANTUM if self.rate is None or self.chunk < CHUNK else QUANTUM * FAST

    @property
    def early(self) -> bool:
        """Whether the next stream has not had its share in this round: it waits for no more than one answer."""
        return self._first > 0

    def schedule(self, stream: Stream) -> None:
        """Give `stream` a turn if it can send and has none yet."""
        if not stream.scheduled and stream.sendable:
            stream.scheduled = True
            if stream.round_ends <= self.turn:
                stream.deficit = 0  # a new one comes with its turn
            elif stream.deficit <= 0:
                self.ready.append(stream)
                return
            self.ready.insert(self._first, stream)
            self._first += 1

    def remove(self, stream: Stream) -> None:
        """Forget a stream that was reset."""
        if stream.scheduled:
            stream.scheduled = False
            if self._first > self.ready.index(stream):
                self._first -= 1
            self.ready.remove(stream)

    def fill(
        self, out: list[Buffer], limit: int, now: float, kept: deque[Kept] | None = None, *, early: bool = False
    ) -> list[Stream]:
        """Append about `limit` bytes of frames to `out`; the streams that sent, one entry for each frame.

        The last frame may pass the limit by a header. `kept` gets each frame too, as long as it must be remembered.
        """
        self._measure(now)
        touched: list[Stream] = []
        ready, room = self.ready, limit
        while ready and room > 0 and (self._first or not early):
            stream = ready[0]
            if stream.deficit <= 0:
                stream.deficit += self.quantum
            largest = self._frame_limit(len(ready))
            more = stream.sent < stream.send_limit if stream.queued else stream.fin_queued
            while more and room > 0 and stream.deficit > 0:
                at, queued = len(out), stream.queued
                size = self._frame(stream, out, min(largest, room))
                if kept is not None:
                    kept.append((queued - stream.queued + FRAME_COST, stream, out[at:]))
                stream.deficit -= size
                room -= size
                touched.append(stream)
                more = stream.sent < stream.send_limit if stream.queued else stream.fin_queued
            if not more:
                ready.popleft()
                stream.scheduled = False
                stream.round_ends = self.turn + len(ready)
            elif stream.deficit <= 0:
                self.turn += 1
                ready.rotate(-1)
            else:
                continue
            if self._first:
                self._first -= 1
        self._moved += limit - room
        self.total += limit - room
        if ready and self._backlogged_since is None:
            self._backlogged_since, self._moved = now, 0
        elif not ready:
            self._backlogged_since = None
        return touched

    def proven(self, rate: float | None) -> None:
        """So many bytes a second have arrived, maybe more than when the link was the bottleneck and was measured."""
        if self._backlogged_since is None and self.rate is not None and rate is not None:
            self.rate = max(self.rate, rate)

    def new_link(self) -> None:
        """What was measured was another link."""
        self.rate = self._backlogged_since = None

    def _measure(self, now: float) -> None:
        since = self._backlogged_since
        if since is None or now - since < FRAME_SECONDS:
            return
        sample = self._moved / (now - since)
        self.rate = sample if self.rate is None else self.rate + RATE_GAIN * (sample - self.rate)
        self._backlogged_since, self._moved = now, 0

    def _frame_limit(self, waiting: int) -> int:
        if waiting == 1 or self.rate is None:
            return MAX_FRAME_PAYLOAD
        return max(MIN_FRAME, min(MAX_FRAME_PAYLOAD, int(self.rate * FRAME_SECONDS)))

    @staticmethod
    def _frame(stream: Stream, out: list[Buffer], largest: int) -> int:
        """Append one frame of `stream`; the bytes of payload that it carries (1 for FIN, which is not free either)."""
        if not stream.queued:
            stream.fin_queued = False
            out.append(HEADER.pack(FrameType.FIN, 0, 0, stream.id, 0))
            return 1
        size = min(stream.queued, stream.send_limit - stream.sent, largest)
        out.append(HEADER.pack(_DATA, 0, 0, stream.id, size))
        left, queue = size, stream.queue
        while left:
            head = queue[0]
            if len(head) <= left:
                out.append(head)
                left -= len(head)
                queue.popleft()
            else:
                view = memoryview(head)
                out.append(view[:left])
                queue[0] = view[left:]
                left = 0
        stream.queued -= size
        stream.sent += size
        return size
