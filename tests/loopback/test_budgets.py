"""Memory stays within what is configured, whatever callers do; who reads does not pay for those who stopped.

Two hundred callers ask for much and read nothing. The kernel takes some megabytes for each; then the tunnel has to hold
still, in both processes, while one more caller comes and reads.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.defaults import MIB, PROCESS_BUDGET
from protocol.flow import PROVEN
from tests.kubernetes.rawhttp import Connection
from tests.lab.processes import wait_until
from tests.lab.world import TowerWorld
from tests.loopback.callers import Caller, metrics
from tests.loopback.member import BackendMember

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]
NAME = "edge"
STOPPED = 200
BESIDE = (
    0.25  # MiB of a connection that are not its bytes: two TLS ends with what they buffer, objects, the allocator's
)
BYTES = 32 * MIB
SLOWER = 5.0  # than alone, on a machine that does something else as well; what it is on an idle one is the bench's
QUIET = 60.0


@pytest.fixture(scope="module")
def world(member: BackendMember) -> Iterator[TowerWorld]:
    settings = {"callers": {"address": "127.0.0.1", "new_per_network": 1000}}
    with tempfile.TemporaryDirectory(prefix="twr-") as folder, TowerWorld(Path(folder), settings=settings) as tower:
        tower.join(NAME, member, credential=member.by_token)
        yield tower


def resident(pid: int) -> float:
    """MiB of memory of a process, now."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def asks(caller: Caller, size: int) -> Connection:
    connection = caller.connect()
    connection.send(connection.request("GET", f"/bytes/{size}"))
    return connection


def download(caller: Caller) -> float:
    """Seconds that one caller takes for its bytes, once it has shown that it reads."""
    with asks(caller, PROVEN + BYTES) as connection:
        assert connection.line().startswith(b"HTTP/1.1 200"), connection._reader.peek(1000)
        while connection.line() != b"\r\n":
            pass
        left, began = PROVEN + BYTES, time.monotonic()
        while left:
            if left > BYTES:
                began = time.monotonic()
            got = len(connection._reader.read1(MIB))
            assert got, "cut"
            left -= got
    return time.monotonic() - began


def quiet(world: TowerWorld) -> None:
    """Waits until nothing moves any more."""
    seen = [-1]

    def still() -> bool:
        (tunnel,) = world.call("GET", f"/v1/tunnels?cluster={NAME}")[1]["items"]
        seen.append(tunnel["bytes_in"] // (MIB // 4))  # probes go on
        time.sleep(0.5)
        return len(set(seen[-3:])) == 1

    wait_until(still, "the end of all movement", QUIET)


def test_two_hundred_readers_that_stop_take_their_budget_and_no_more_and_one_that_reads_is_served(
    world: TowerWorld,
) -> None:
    caller, processes = Caller(world.kubeconfig(NAME)), {"server": world.server, "agent": world.members[NAME].agent}
    download(caller)
    alone = min(download(caller) for _ in range(2))
    before = {name: resident(child.pid) for name, child in processes.items()}
    with contextlib.ExitStack() as stack:
        for _ in range(STOPPED):
            stack.enter_context(asks(caller, 1 << 30))
        quiet(world)
        beside = min(download(caller) for _ in range(3))
        used = {
            "server": metrics(world)["tower_buffer_bytes"],
            "agent": metrics(world, NAME)["tower_agent_buffer_bytes"],
        }
        grown = {name: resident(child.pid) - before[name] for name, child in processes.items()}
    quiet(world)
    alone = max(alone, min(download(caller) for _ in range(2)))  # should the machine have become busy meanwhile
    print(f"{BYTES / alone / 1e6:.0f} MB/s alone, {BYTES / beside / 1e6:.0f} beside; MiB grown {grown}, counted {used}")
    for name in processes:
        assert used[name] <= PROCESS_BUDGET, name
        assert grown[name] < PROCESS_BUDGET / MIB + STOPPED * BESIDE, name
    assert beside < SLOWER * alone
    assert caller.ask("/after").status == 200
