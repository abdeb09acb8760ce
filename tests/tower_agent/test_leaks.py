"""A thousand connects and disconnects of an agent leave both ends as they were."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest
import uvloop

from certs.identity_files import DirectoryIdentityStore
from protocol.aio.dial import dial
from protocol.aio.stream import IncomingStream
from protocol.constants import Code
from protocol.flow import Budget
from tests.tower_agent.tower import Tower, new_tower, serving_tower, state_dir
from tower_agent.enrol import Enrolment
from tower_agent.trust import HostTrust
from tower_agent.wayout import WayOut

CONNECTS = 1000
MOST_GROWTH = 2 * 1024 * 1024  # from the end of the second tenth to the end of the last


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def connect_and_leave(tower: Tower, trust: HostTrust, budget: Budget) -> list[int]:
    """Resident bytes after each tenth."""
    target = WayOut().tunnel(trust.identity.url, trust.bundle)
    sizes: list[int] = []

    def decline(incoming: IncomingStream) -> None:
        incoming.refuse(Code.DRAINING, "no")

    for number in range(1, CONNECTS + 1):
        handshake = trust.handshake(instance="leak", software="test")
        tunnel = await dial(target, handshake=handshake, instance="leak", budget=budget, on_stream=decline)
        tunnel.close(Code.NONE, "done")
        await tower.tunnels.pop().wait_closed()
        if number % (CONNECTS // 10) == 0:
            await asyncio.sleep(0.05)
            gc.collect()
            sizes.append(resident())
    return sizes


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_memory_stays_flat(tmp_path: Path) -> None:
    async def scenario() -> list[int]:
        store = DirectoryIdentityStore(state_dir(tmp_path))
        async with serving_tower(new_tower()) as tower:
            await Enrolment(str(tower.token()), store=store, way=WayOut()).run()
            budget = Budget(1 << 26)
            sizes = await connect_and_leave(tower, await HostTrust.load(store, "east"), budget)
            assert budget.used == 0
            return sizes

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        sizes = loop.run(scenario())
    assert sizes[-1] - sizes[1] <= MOST_GROWTH, sizes
