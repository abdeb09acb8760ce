"""Frames that wait for the link beside stream data: control frames in order, and credit grants still to be sent.

Invariants:
- Numbered frames survive a lost link and follow what is sent again on the next one; all others are made anew.
- A stream has one pending grant at most, the latest. It must not overtake the OPEN_OK of its stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from protocol.constants import FIRST_UNNUMBERED, HEADER, FrameType
from protocol.frames import U64, encode
from protocol.scheduler import Buffer


class Outbox:
    """The control frames of one end of a tunnel that have not left."""

    __slots__ = ("_behind", "_late", "answers", "frames", "grants")

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()
        self.answers = 0  # of `frames`, what the peer made this end say
        self.grants: dict[int, int] = {}
        self._late: set[int] = set()  # streams whose OPEN_OK is still to leave, behind what is sent again
        self._behind = False

    def accepted(self, stream: int) -> None:
        """OPEN_OK is about to be queued."""
        self.answers += 1
        if self._behind:
            self._late.add(stream)

    def put_ack(self, frame: bytes) -> None:
        """Queue an ACK. Of two in a row the newest says it all: the peer does not read."""
        frames = self.frames
        if frames and frames[-1][0] == FrameType.ACK:
            frames.pop()
        frames.append(frame)

    def take(self) -> list[bytes]:
        """All frames."""
        taken = list(self.frames)
        self.frames.clear()
        self.answers = 0
        return taken

    def take_unnumbered(self) -> list[Buffer]:
        """Those that may leave before what is sent again."""
        taken: list[Buffer] = [frame for frame in self.frames if frame[0] >= FIRST_UNNUMBERED]
        self._keep_numbered()
        self.answers = min(self.answers, len(self.frames))
        return taken

    def take_grants(self, out: list[Buffer]) -> None:
        """Append CREDIT frames, but for streams whose OPEN_OK is yet to leave."""
        late, grants = self._late, self.grants
        out += [encode(FrameType.CREDIT, stream, U64.pack(to)) for stream, to in grants.items() if stream not in late]
        self.grants = {stream: grant for stream, grant in grants.items() if stream in late} if late else {}

    def link_lost(self) -> None:
        """Forget what is made anew on the next link."""
        self._keep_numbered()
        self.grants.clear()
        self.caught_up()

    def send_again(self, frames: Iterable[Buffer]) -> None:
        """A new link carries these once more, before the numbered ones here."""
        self._behind = True
        for frame in (*frames, *self.frames):
            if frame[0] == FrameType.OPEN_OK:
                self._late.add(HEADER.unpack_from(frame)[3])

    def caught_up(self) -> None:
        """Nothing is left to be sent again."""
        self._behind = False
        self._late.clear()

    def _keep_numbered(self) -> None:
        self.frames = deque(frame for frame in self.frames if frame[0] < FIRST_UNNUMBERED)
