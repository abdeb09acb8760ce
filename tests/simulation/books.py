"""What was written at one end against what is read at the other, and how each stream ended.

Nothing here looks into a session: it is told what an owner did and what an owner was told. Bytes are a pattern that
every stream and direction enters at another place, so that a lost, doubled, moved or foreign piece shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from tests.simulation.plan import Call, Side
from tests.simulation.world import require

_PERIOD = 65521
_PATTERN = Random("pattern").randbytes(_PERIOD) * 6
_VIEW = memoryview(_PATTERN)


def pattern(start: int, offset: int, size: int) -> memoryview:
    """`size` bytes from `offset` of what enters the pattern at `start`; at most 256 KiB."""
    at = (start + offset) % _PERIOD
    return _VIEW[at : at + size]


@dataclass(slots=True, eq=False)
class Half:
    """One end of a stream: what its owner did and was told."""

    side: Side
    start: int  # where what it writes enters the pattern
    written: int = 0
    read: int = 0
    consumed: int = 0
    accepted: bool = False
    asked: bool = False
    finished: bool = False  # FIN said by this owner
    closing: bool = False
    peer_finished: bool = False
    paused: bool = False
    stopped: bool = False  # a reader that has stopped once already
    waiting: bool = False  # for its own timer, as a reader
    writing: bool = False  # the same, as a writer
    outcome: str = ""
    reason: str = ""
    peer: Half | None = None

    def received(self, data: memoryview, where: str) -> None:
        """Compare with what the other end wrote."""
        peer = self.peer
        require(not self.outcome, "S8 after the end", "%s: data after it was %s", where, self.outcome)
        require(not self.peer_finished, "S1 data after FIN", "%s: %d bytes after the finish", where, len(data))
        require(len(data) > 0, "S1 empty", "%s: an event without data", where)
        assert peer is not None
        end = self.read + len(data)
        require(end <= peer.written, "S1 bytes", "%s: %d bytes read, %d written", where, end, peer.written)
        same = data == pattern(peer.start, self.read, len(data))
        require(same, "S1 bytes", "%s: other bytes than were written from offset %d", where, self.read)
        self.read = end

    def saw_finish(self, where: str) -> None:
        """FIN, after all bytes and once."""
        peer = self.peer
        assert peer is not None
        require(not self.outcome, "S8 after the end", "%s: FIN after it was %s", where, self.outcome)
        require(not self.peer_finished, "S1 FIN twice", "%s: finished twice", where)
        require(peer.finished, "S1 FIN", "%s: the other end has not finished", where)
        require(self.read == peer.written, "S1 FIN", "%s: FIN after %d of %d bytes", where, self.read, peer.written)
        self.peer_finished = True

    def end(self, outcome: str, reason: str, where: str) -> None:
        """The one end of it, with a reason."""
        require(not self.outcome, "S8 one end", "%s: %s after it was %s", where, outcome, self.outcome)
        require(bool(reason), "S8 no reason", "%s: %s without a reason", where, outcome)
        if outcome == "closed":
            require(self.peer_finished, "S8 closed", "%s: closed, but the other end has not finished", where)
            require(self.consumed == self.read, "S8 closed", "%s: closed before all was passed on", where)
        self.outcome = outcome
        self.reason = reason


@dataclass(slots=True, eq=False)
class Pair:
    """Both ends of one stream."""

    where: str
    call: Call
    opener: Half
    at: float  # when it was opened
    acceptor: Half | None = None


@dataclass(slots=True, eq=False)
class Books:
    """All streams of a run."""

    pairs: list[Pair] = field(default_factory=list)

    def opened(self, call: Call, where: str, at: float) -> tuple[int, Pair]:
        """A stream that was just opened; its number travels as the connection id."""
        number = len(self.pairs)
        pair = Pair(f"call {number}, {where}", call, Half(call.opener, 7919 * number), at)
        self.pairs.append(pair)
        return number, pair

    def asked(self, number: int, where: str) -> Pair:
        """The other end was asked."""
        require(0 <= number < len(self.pairs), "S9 open", "%s: an OPEN that nobody sent", where)
        pair = self.pairs[number]
        require(pair.acceptor is None, "S9 open", "%s: asked twice", pair.where)
        require(not pair.call.by_agent, "S9 refusal", "%s: the server takes a stream of an agent's", pair.where)
        other = pair.acceptor = Half(pair.call.acceptor, 7919 * number + 31337, asked=True)
        other.peer, pair.opener.peer = pair.opener, other
        return pair

    def halves(self) -> Iterator[tuple[str, Half]]:
        """All ends."""
        for pair in self.pairs:
            yield pair.where + ", opener", pair.opener
            if pair.acceptor is not None:
                yield pair.where + ", acceptor", pair.acceptor

    def all_ended(self) -> None:
        """No stream without an end, and the same verdict at both."""
        for where, half in self.halves():
            require(
                bool(half.outcome),
                "L3 no end",
                "%s: read %d of %d, written %d of %d",
                where,
                half.read,
                half.peer.written if half.peer else 0,
                half.written,
                half.side.writes,
            )
        for pair in self.pairs:
            for one, other in ((pair.opener, pair.acceptor), (pair.acceptor, pair.opener)):
                if one is not None:
                    _verdict(pair.where, one, other)


_CUT = ("lost", "killed")


def _verdict(where: str, one: Half, other: Half | None) -> None:
    """What the end of one half says of the other's. A tunnel that was lost may have been so for one end first."""
    theirs = "" if other is None else other.outcome
    text = f"{where}: one end was {one.outcome} ({one.reason}), the other {theirs or 'never asked'}"
    match one.outcome:
        case "closed":
            assert other is not None
            require(one.read == other.written, "L1 bytes", "%s, and bytes are missing", text)
            fits = ("closed", "closed here", "reset here", "refused", *_CUT)  # refused: answered too late
            require(theirs in fits, "L3 verdict", "%s", text)
        case "reset by peer":
            require(theirs in ("", "reset here", "refused", *_CUT), "L3 verdict", "%s", text)
        case "refused":
            fits = ("", "refused here", "reset by peer", "reset here", "closed", "closed here", *_CUT)
            require(theirs in fits, "L3 verdict", "%s", text)
        case "refused here":
            require(theirs in ("refused", "reset here", *_CUT), "L3 verdict", "%s", text)
