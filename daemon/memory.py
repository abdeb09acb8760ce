"""How the process keeps memory: how much it may buffer, and how the allocator treats what comes and goes.

glibc gives the top of the heap back to the kernel after almost every large block and maps each block above 128 KiB
anew. A relay allocates and frees such blocks thousands of times a second, and the page faults were a fifth of its
processor time. Elsewhere than on glibc nothing is changed.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

from pydantic import model_validator

from daemon.config import Section, Size
from protocol import defaults
from protocol.defaults import MIB
from protocol.flow import Budget, Limits

M_TRIM_THRESHOLD: Final = -1  # <malloc.h>
M_MMAP_THRESHOLD: Final = -3
M_ARENA_MAX: Final = -8
KEEP_BYTES: Final = 16 * MIB  # of free memory at the top of the heap
LARGE_BYTES: Final = 8 * MIB  # a block from here on is mapped by itself
ARENAS: Final = 2  # one for the loop, one for its few worker threads
# Allocations between collections, and collections of the young between those of the older. Streams are freed by
# counting; what a tunnel leaves behind in cycles is old by then and must not wait for millions of allocations.
COLLECT: Final = (5_000, 10, 10)


class Memory(Section):
    """What streams may buffer: received and not read yet, granted to peers, waiting to be sent."""

    tunnel: Size = defaults.TUNNEL_BUDGET
    """For one tunnel."""
    process: Size = defaults.PROCESS_BUDGET
    """For all tunnels of the process."""

    @model_validator(mode="after")
    def _room_for_a_stream(self) -> Memory:
        if min(self.tunnel, self.process) < defaults.INITIAL_CREDIT:
            raise ValueError("a budget below 256KiB has no room for one stream")
        return self

    def budget(self) -> Budget:
        """The process' budget."""
        return Budget(self.process)

    def limits(self) -> Limits:
        """A tunnel's limits."""
        return Limits(tunnel_budget=self.tunnel)


def tune_allocator() -> bool:
    """Set glibc's thresholds; False where there is no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_TRIM_THRESHOLD, KEEP_BYTES), (M_MMAP_THRESHOLD, LARGE_BYTES), (M_ARENA_MAX, ARENAS))
    taken = [mallopt(key, value) == 1 for key, value in settings]  # each is worth having without the others
    return all(taken)


def settle_collector() -> None:
    """After start-up: what has been imported stays, and collections look at the rest, seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT)
