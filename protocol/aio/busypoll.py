"""Looking for the next message rather than sleeping until it comes, where messages follow one another closely.

To put a processor to sleep and to wake it again costs 10 to 100 µs, most in virtual machines, and a small request wakes
one six times on its way through a tunnel and back. So after a message the loop polls for a moment without sleeping. It
is given up where nobody gains by it:
- At each turn whatever else wants the processor is let in first.
- A poll that fewer than PAYS messages have joined was in vain: after it, twice as many messages as the last time are
  waited for asleep, up to MOST_ASLEEP. So pings, watches and single commands cost nothing to speak of.
- Long messages are bulk, for which what the loop reads at once counts, and not when it wakes.
- What a peer says before it has proven who it is does not count (`Link.proven`).
"""

from __future__ import annotations

import asyncio
import os
from time import monotonic
from typing import Final
from weakref import WeakKeyDictionary

from protocol.defaults import KIB

POLL: Final = 0.0005  # seconds without a message before the loop sleeps: a round trip over both ends on one machine
PAYS: Final = 8  # messages in one poll
MOST_ASLEEP: Final = 64
SHORT: Final = 16 * KIB  # bytes of a message


class BusyPoll:
    """One event loop's, which it does not hold. `message` is told of each short message that came.

    Attributes:
        held: whether something waits for the next turn to leave, so that nobody is let in first.
    """

    __slots__ = ("_asleep", "_joined", "_left", "_until", "enabled", "held", "polling")

    def __init__(self) -> None:
        self.enabled = True
        self.polling = False
        self.held = False
        self._joined = 0  # messages of this poll
        self._until = 0.0
        self._asleep = 0  # messages to wait for asleep after a poll in vain
        self._left = 0  # of those

    def message(self, now: float) -> None:
        """One came, at `now` (monotonic)."""
        self._until = now + POLL
        if self.polling:
            self._joined += 1
        elif self._left:
            self._left -= 1
        elif self.enabled:
            self.polling = True
            self._joined = 1
            asyncio.get_running_loop().call_soon(self._poll)

    def _poll(self) -> None:
        if monotonic() < self._until:
            if not self.held:
                os.sched_yield()
            # With this pending the loop looks at its sockets and does not wait.
            asyncio.get_running_loop().call_soon(self._poll)
            return
        self.polling = False
        self._asleep = 0 if self._joined >= PAYS else min(MOST_ASLEEP, 2 * self._asleep + 1)
        self._left = self._asleep


_polls: WeakKeyDictionary[asyncio.AbstractEventLoop, BusyPoll] = WeakKeyDictionary()


def busy_poll(loop: asyncio.AbstractEventLoop) -> BusyPoll:
    """The loop's; the same object for every caller on that loop."""
    found = _polls.get(loop)
    if found is None:
        found = _polls[loop] = BusyPoll()
    return found
