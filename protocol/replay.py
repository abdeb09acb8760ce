"""The numbered frames that the peer has not acknowledged, which a new link has to carry again.

Invariants:
- The entries are exactly the frames (acked, sent], in order. Payloads are kept as the pieces that left, without a copy.
- `used` is the sum of their sizes, each with FRAME_COST on top, and is charged to the tunnel's budget.
- When the buffer is full, DATA and the FIN behind it have to wait, and no other frame does. It always empties again,
  since acknowledgements do not depend on readers. What the other frames may add is bounded by RESERVE; a peer that
  makes this end exceed it is at fault.
- For a stream that was reset meanwhile, SKIP is sent again in place of its DATA and FIN: both ends still count the same
  frames, and nobody takes half a stream for a whole one.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from protocol.constants import FrameType
from protocol.defaults import MIB
from protocol.flow import Budget
from protocol.frames import encode
from protocol.scheduler import FRAME_COST, Buffer, Kept

FLOOR: Final = 2 * MIB  # what one tunnel may have on its way when no budget is left: two acknowledgements' worth
RESERVE: Final = 16 * MIB  # for frames other than DATA and FIN that are not acknowledged
_SKIP: Final = encode(FrameType.SKIP, 0)


class Replay:
    """The replay buffer of one session."""

    __slots__ = ("_budget", "_limit", "kept", "resending", "used")

    def __init__(self, budget: Budget, limit: int) -> None:
        self._budget = budget
        self._limit = limit
        self.kept: deque[Kept] = deque()
        self.resending: deque[Kept] = deque()  # of `kept`, what the present link has yet to carry; its tail
        self.used = 0

    @property
    def room(self) -> int:
        """Bytes of data that may leave now; none or less when full."""
        return (min(self._limit, FLOOR) if self._budget.full else self._limit) - self.used

    @property
    def overrun(self) -> bool:
        """Whether a peer that acknowledges nothing has been told too much."""
        return self.used > self._limit + RESERVE

    def keep(self, frame: bytes) -> None:
        """A frame that is neither DATA nor FIN leaves."""
        size = len(frame) + FRAME_COST
        self.kept.append((size, None, [frame]))
        self.used += size
        self._budget.charge(size)

    def kept_data(self, frames: int, size: int) -> None:
        """The scheduler has put `frames` with `size` bytes of payload into `kept`; the payload is charged already."""
        self.used += size + frames * FRAME_COST
        self._budget.charge(frames * FRAME_COST)

    def acknowledge(self, frames: int) -> None:
        """The peer has taken in that many more of the frames that have left."""
        popleft, freed = self.kept.popleft, 0
        for _ in range(frames):
            freed += popleft()[0]
        self.used -= freed
        self._budget.give(freed)

    def begin(self) -> None:
        """A new link: everything that is kept leaves once more, before anything else that is numbered."""
        self.resending = self.kept.copy()

    def resend(self, out: list[Buffer], limit: int) -> None:
        """Append about `limit` bytes of it."""
        resending = self.resending
        while resending and limit > 0:
            size, stream, buffers = resending.popleft()
            if stream is not None and stream.cut:
                out.append(_SKIP)
                limit -= len(_SKIP)
            else:
                out += buffers
                limit -= size

    def clear(self) -> None:
        """The tunnel is over."""
        self._budget.give(self.used)
        self.used = 0
        self.kept.clear()
        self.resending.clear()
