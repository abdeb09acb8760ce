"""What one end of a tunnel writes on its links, frame by frame: credit, order and fairness, seen from outside.

Frames are found by their headers alone. What an end may know of the other's grants is followed by where on the link the
frames stood that carried them: a grant counts once its frame has arrived whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from zlib import crc32

from tests.simulation.world import World, require

HEADER = Struct("!BBHII")
U64 = Struct("!Q")
OPEN, OPEN_OK, OPEN_ERR, DATA, FIN, RST, SKIP = range(1, 8)
ACK, PING, PONG, GOAWAY, CREDIT, CLOSE = range(16, 22)


# A grant, ACK or PONG on its way: where on the link its frame ends, its stream (ACK: 0, PONG: -1), its offset or count.
Mark = tuple[int, int, int]


class Shares:
    """What a process' tunnels have granted and not seen consumed, together."""

    __slots__ = ("granted", "limit", "name")

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.granted = 0

    def add(self, size: int) -> None:
        self.granted += size
        require(
            size <= 0 or self.granted <= self.limit,
            "S5 budget",
            "%s: %d bytes granted, budget %d",
            self.name,
            self.granted,
            self.limit,
        )


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one end may let the other do, and keep itself. Bytes."""

    window: int
    early: int  # before OPEN_OK
    kept: int  # DATA that was not acknowledged, but for one pull's
    quantum: int  # counted from any moment, two streams are at most two of them and two frames apart; none is larger


class Watch:
    """What one end of a tunnel writes, over all links."""

    def __init__(self, world: World, name: str, tunnel: Shares, process: Shares, bounds: Bounds) -> None:
        self.name = name
        self.acked = 0  # of the numbered frames, as far as ACKs have arrived
        self.known: dict[int, int] = {}  # grants that have arrived here
        self._arriving: deque[Mark] = deque()
        self._leaving: deque[Mark] = deque()
        self._world = world
        self._tunnel = tunnel
        self._process = process
        self._bounds = bounds
        self._granted: dict[int, int] = {}
        self._consumed: dict[int, int] = {}
        self._read: dict[int, int] = {}  # consumed when the last grant left
        self._gone: set[int] = set()
        self._sent: dict[int, int] = {}
        self._written = 0  # bytes on the link in use
        self._numbered: list[int] = []  # a digest of each numbered frame, in order
        self._sizes: list[int] = []  # of DATA; 0 for others
        self._kept = 0
        self._next = 0
        self._turns: dict[int, int] = {}  # bytes sent by each stream since all of them could

    # ---- links --------------------------------------------------------------------------------------------------

    def attached(self, arriving: deque[Mark], leaving: deque[Mark], *, written: int, position: int) -> None:
        """A new link, `written` bytes into it; the first numbered frame on it is the one after `position`."""
        self._next = position
        self._written = written
        self._arriving, self._leaving = arriving, leaving
        self._turns.clear()
        fits = self.acked <= position <= len(self._numbered)
        require(fits, "S3 position", "%s: resumed after %d frames, %d acked", self.name, position, self.acked)
        self._acknowledged(position)

    def arrived(self, carried: int) -> bool:
        """The other end's link has delivered so many bytes here; whether an answer was among them."""
        arriving, before, answered = self._arriving, self.acked, False
        while arriving and arriving[0][0] <= carried:
            _, stream, value = arriving.popleft()
            if stream < 0:
                answered = True
            elif not stream:
                self._acknowledged(value)
            elif value > self.known.get(stream, 0):
                self.known[stream] = value
        return answered or self.acked > before

    def _acknowledged(self, frames: int) -> None:
        """The other end has taken in so many."""
        before, self.acked = self.acked, max(self.acked, frames)
        require(frames <= len(self._numbered), "S3 ACK", "%s: %d acked of %d", self.name, frames, len(self._numbered))
        self._kept -= sum(self._sizes[before : self.acked])

    # ---- what is written ----------------------------------------------------------------------------------------

    def wrote(self, data: bytes, ready: list[int], queued: Callable[[int], int]) -> bool:
        """One pull's bytes. `ready`: the streams that had some queued before it; `queued`: what they have now. Whether
        the other end has to answer."""
        able = [stream for stream in ready if self._sent.get(stream, 0) < self.known.get(stream, 0)]
        turns = self._turns
        if list(turns) != able:
            turns.clear()
            turns.update(dict.fromkeys(able, 0))
        at, bulk, kept, asks = 0, False, self._kept, False
        while at < len(data):
            kind, _, _, stream, length = HEADER.unpack_from(data, at)
            body, at = at + 12, at + 12 + length
            require(at <= len(data), "S2 frames", "%s: a frame is cut by the end of a message", self.name)
            asks = asks or kind == PING or kind < 16
            fresh = kind >= 16 or self._number(kind, data[body - 12 : at])
            if kind in (DATA, FIN):
                bulk = True
                if kind == DATA and fresh:
                    self._data(stream, length)
                continue
            require(not bulk or not fresh, "S12 control", "%s: a frame of type %d waits behind data", self.name, kind)
            if kind in (OPEN, OPEN_OK, CREDIT):
                (grant,) = U64.unpack_from(data, body)
                self._grant(stream, grant, told=kind != CREDIT)
                self._leaving.append((self._written + at, stream, grant))
            elif kind == ACK:
                self._leaving.append((self._written + at, 0, U64.unpack_from(data, body)[0]))
            elif kind == PONG:
                self._leaving.append((self._written + at, -1, 0))
        self._written += len(data)
        if self._kept > kept:
            most = self._bounds.kept + len(data)
            require(self._kept <= most, "S7 replay", "%s: %d bytes kept, bound %d", self.name, self._kept, most)
        if len(turns) > 1:
            self._fair(queued)
        return asks

    def _number(self, kind: int, frame: bytes) -> bool:
        """Whether a numbered frame is new; one that is sent again must be the same, or skipped."""
        number, self._next = self._next, self._next + 1
        digest = crc32(frame)
        if number == len(self._numbered):
            self._numbered.append(digest)
            self._sizes.append(len(frame) if kind == DATA else 0)
            self._kept += self._sizes[-1]
            return True
        same = self._numbered[number] == digest or kind == SKIP
        require(same, "S2 replay", "%s: frame %d differs when it is sent again", self.name, number)
        self._world.counts["frames skipped" if kind == SKIP else "frames replayed"] += 1
        return False

    def _data(self, stream: int, length: int) -> None:
        require(length > 0, "S1 empty", "%s: DATA without payload", self.name)
        sent = self._sent.get(stream, 0) + length
        self._sent[stream] = sent
        allowed = max(self.known.get(stream, 0), self._bounds.early)
        require(sent <= allowed, "S5 credit", "%s: stream %d sent %d of %d granted", self.name, stream, sent, allowed)
        if stream in self._turns:
            self._turns[stream] += length

    def _grant(self, stream: int, grant: int, *, told: bool) -> None:
        before, read = self._granted.get(stream, 0), self._consumed.get(stream, 0)
        if grant <= before or stream in self._gone:
            return  # made anew, or left after its stream was dropped
        own = told or read > self._read.get(stream, 0)
        require(own, "S13 credit", "%s: stream %d is granted more, and has read nothing", self.name, stream)
        if not told:  # what OPEN_OK tells may be older than it leaves
            self._read[stream] = read
        self._granted[stream] = grant
        self._tunnel.add(grant - before)
        self._process.add(grant - before)
        used = grant - read
        require(
            0 <= used <= self._bounds.window,
            "S5 window",
            "%s: stream %d is granted %d at once",
            self.name,
            stream,
            used,
        )

    def consumed(self, stream: int, size: int) -> None:
        """This end's reader has passed bytes on."""
        self._consumed[stream] = self._consumed.get(stream, 0) + size
        self._tunnel.add(-size)
        self._process.add(-size)

    @property
    def all_acked(self) -> bool:
        """Whether every numbered frame is known to have arrived."""
        return self.acked == len(self._numbered)

    def ended(self, stream: int) -> None:
        """A stream is gone at this end, its share with it."""
        self._gone.add(stream)
        rest = self._granted.pop(stream, 0) - self._consumed.pop(stream, 0)
        self._tunnel.add(-rest)
        self._process.add(-rest)
        self._turns.pop(stream, None)
        self._read.pop(stream, None)

    def _fair(self, queued: Callable[[int], int]) -> None:
        """Of streams that could send all the while, none is ahead of another by more than it may be."""
        turns = self._turns
        if any(self._sent.get(stream, 0) >= self.known.get(stream, 0) or not queued(stream) for stream in turns):
            turns.clear()
            return
        ahead, bound = max(turns.values()) - min(turns.values()), 4 * self._bounds.quantum
        require(ahead <= bound, "S12 fair", "%s: %d bytes ahead, bound %d", self.name, ahead, bound)
