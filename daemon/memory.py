"""How the process keeps memory: for relaying bulk data, and for long lives.

glibc gives the top of the heap back to the kernel after almost every large block and maps each block above 128 KiB
anew. A relay allocates and frees such blocks thousands of times a second, and the page faults were a fifth of its
processor time. Elsewhere than on glibc nothing is changed.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

from protocol.defaults import MIB

M_TRIM_THRESHOLD: Final = -1  # <malloc.h>
M_MMAP_THRESHOLD: Final = -3
M_ARENA_MAX: Final = -8
KEEP_BYTES: Final = 16 * MIB  # of free memory at the top of the heap
LARGE_BYTES: Final = 8 * MIB  # a block from here on is mapped by itself
ARENAS: Final = 2  # one for the loop, one for its few worker threads
YOUNG_OBJECTS: Final = 20_000  # allocations between collections; streams are freed by counting, not by these


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
    gc.set_threshold(YOUNG_OBJECTS, 20, 50)
