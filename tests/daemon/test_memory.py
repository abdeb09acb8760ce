"""Memory: large blocks that come and go cost no page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from daemon.memory import Memory

_PROGRAM = """
import resource
from daemon.memory import tune_allocator
assert tune_allocator()
bytes(1 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(500):
    blocks = [bytes(300_000), bytes(300_000)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
def test_blocks_that_come_and_go_are_not_given_back_to_the_kernel() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=30, check=True)
    # 1,000 blocks of 74 pages each: untuned, most of their 74,000 pages fault anew.
    assert int(done.stdout) < 2000


def test_budgets_are_what_the_configuration_says() -> None:
    memory = Memory(tunnel=1 << 20, process=4 << 20)
    assert (memory.limits().tunnel_budget, memory.budget().limit) == (1 << 20, 4 << 20)


def test_a_budget_without_room_for_a_stream_is_refused() -> None:
    with pytest.raises(ValidationError, match="below 256KiB has no room for one stream"):
        Memory(tunnel=1000)
