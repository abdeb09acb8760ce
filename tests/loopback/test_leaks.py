"""Nothing leaks over a long life: streams and tunnels come and go by the thousand, memory and descriptors stay.

Measured from outside, by what the kernel says of both processes. What is compared is the end of the second tenth (by
then pools, caches and allocator have what they will keep) with the end of the last.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.processes import wait_until
from tests.lab.world import TowerWorld
from tests.loopback.callers import Caller, context_of, metrics, tunnels
from tests.loopback.member import BackendMember
from tests.loopback.relay import Network

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NAME = "edge"
STREAMS, CONNECTS, RESTARTS = 10_000, 1_000, 40
GROWTH = 2 * 1024 * 1024
SETTLE = 15.0  # a caller's TLS may linger for two seconds, and freed descriptors are closed by then
AT_ONCE = 4
RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds: bytes of resident memory, descriptors, threads."""

    memory: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Held:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(
            pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))
        )


@pytest.fixture(scope="module")
def tower(place: Path, net: tuple[Network, int], member: BackendMember) -> Iterator[TowerWorld]:
    settings = {
        "public_url": f"wss://127.0.0.1:{net[0].port}",
        "log": {"level": "warning"},
        "admission": {"handshakes_per_second": 10000, "handshake_burst": 10000},
    }
    constants = {"BACKOFF_MIN": 0.001, "BACKOFF_MAX": 0.01}  # a thousand returns, not a test of patience
    with TowerWorld(place / "w", settings=settings, constants=constants, tunnel_port=net[1]) as world:
        world.join(NAME, member, credential=member.by_token, settings={"log": {"level": "error"}})
        yield world


def held(tower: TowerWorld) -> dict[str, Held]:
    return {"server": Held.of(tower.server.pid), "agent": Held.of(tower.members[NAME].agent.pid)}


def settled(tower: TowerWorld) -> dict[str, Held]:
    """Once no stream is open and descriptors stand still."""
    series = f'tower_streams{{member_cluster="{NAME}",service="kubernetes"}}'
    wait_until(lambda: metrics(tower).get(series, 0) == 0, "no stream", SETTLE)
    before = held(tower)
    end = time.monotonic() + SETTLE
    while time.monotonic() < end:
        time.sleep(0.5)
        now = held(tower)
        if all(now[name].descriptors == before[name].descriptors for name in now):
            return now
        before = now
    return before


def flat(
    tower: TowerWorld, times: int, tenth: Callable[[int], None], of: Collection[str] = ("server", "agent")
) -> None:
    """Runs `tenth(times / 10)` ten times and holds that what the processes have is what they had after the second."""
    seen = []
    for _ in range(10):
        tenth(times // 10)
        seen.append(settled(tower))
    report = "\n".join(f"{name}: {[each[name] for each in seen]}" for name in seen[0])
    for name in of:
        last, second = seen[-1][name], seen[1][name]
        assert last.memory <= second.memory + GROWTH, report
        assert last.descriptors <= second.descriptors + 2, report  # a probe may be under way
        assert last.threads <= second.threads, report


def test_ten_thousand_streams_leave_nothing(tower: TowerWorld) -> None:
    caller = Caller(tower.kubeconfig(NAME))
    context, name = context_of(caller), caller.cluster["tls-server-name"]
    bearer = b"Authorization: Bearer canary\r\n"
    refused = b"GET /none HTTP/1.1\r\nHost: k\r\nConnection: close\r\n\r\n"
    passed = b"GET /none HTTP/1.1\r\nHost: k\r\nConnection: close\r\n" + bearer + b"\r\n"

    def one(number: int) -> None:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError), caller.plain() as bare:
            kind = number % 10
            if kind < 7:
                with context.wrap_socket(bare, server_hostname=name) as tls:
                    tls.sendall(refused if kind else passed)
                    while tls.recv(65536):
                        pass
            elif kind == 7:
                bare.sendall(bytes(64))
                bare.recv(100)
            elif kind == 8:
                bare.sendall(b"\x16\x03\x01\x02\x00")
                bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            # else gone without a word

    def tenth(count: int) -> None:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(one, range(count)))

    opened = f'tower_stream_opens_total{{member_cluster="{NAME}",result="ok"}}'
    before = metrics(tower)[opened]
    flat(tower, STREAMS, tenth)
    assert metrics(tower)[opened] >= before + STREAMS * 0.85  # who leaves at once may be gone before it is accepted


def test_a_thousand_returns_of_an_agent_leave_nothing(tower: TowerWorld, net: tuple[Network, int]) -> None:
    """Each over a link of its own, by which the one tunnel goes on."""
    relay, _ = net
    resumed = f'tower_tunnel_resumes_total{{member_cluster="{NAME}",result="ok"}}'

    def tenth(count: int) -> None:
        for _ in range(count):
            before = metrics(tower)[resumed]
            relay.do("cut")
            wait_until(lambda: metrics(tower)[resumed] > before, "the agent is back", SETTLE)  # noqa: B023 - called here

    before = tunnels(tower, NAME)
    flat(tower, CONNECTS, tenth)
    assert tunnels(tower, NAME) == before
    assert metrics(tower)[resumed] >= CONNECTS


def test_agents_that_are_started_anew_leave_nothing(tower: TowerWorld) -> None:
    """Each with a tunnel of its own, and the one before was not closed in order."""

    def tenth(count: int) -> None:
        for _ in range(count):
            before = tunnels(tower, NAME)
            tower.members[NAME].agent.send(signal.SIGKILL)
            tower.restart_agent(NAME)
            wait_until(lambda: tunnels(tower, NAME) not in ([], before), "the agent is back", SETTLE)  # noqa: B023

    flat(tower, RESTARTS, tenth, of=("server",))
