"""A peer from which nothing comes is noticed in time by both ends, and one that is merely slow is not given up."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.network import MemberNetwork, lacking
from tests.lab.processes import LabError, free_ports, wait_until
from tests.lab.world import TowerWorld
from tests.loopback.callers import Caller, lines, tunnels
from tests.loopback.member import BackendMember
from tests.loopback.slow import slow_way

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
IDLE, BUSY = "idle", "busy"
TUNED = {"liveness": {"ping": "1500ms", "dead_after": "5s"}, "drain": "500ms"}
BACK = 60.0
LATE = 2.5  # for the process to come to it, by its own clock
SILENT = re.compile(r"nothing heard from the peer for ([0-9.]+) s")


@pytest.fixture(scope="module")
def net() -> Iterator[MemberNetwork]:
    if reason := lacking():
        pytest.skip(f"no network namespaces here: {reason}")
    with MemberNetwork() as made:
        yield made


@pytest.fixture(scope="module")
def apart(net: MemberNetwork) -> Iterator[BackendMember]:
    """A member in a network of its own."""
    with tempfile.TemporaryDirectory(prefix="twr-") as folder, BackendMember(Path(folder), net) as made:
        yield made


@contextlib.contextmanager
def tower_of(apart: BackendMember, net: MemberNetwork, settings: dict[str, object]) -> Iterator[TowerWorld]:
    with (
        tempfile.TemporaryDirectory(prefix="twr-") as folder,
        TowerWorld(Path(folder), address=net.host, settings=settings) as world,
    ):
        for name in (IDLE, BUSY):
            world.join(name, apart, credential=apart.by_token, settings=settings)
        yield world


def noticed(log: Path, event: str, name: str, since: float) -> tuple[float, float] | None:
    """Of a tunnel whose peer a process has said to be dead: the silence by its own count, and how long after `since`
    that was. Seconds."""
    for entry in lines(log, event, name):
        if (silence := SILENT.search(entry["text"])) and entry["time"] > since:
            return float(silence[1]), entry["time"] - since
    return None


@contextlib.contextmanager
def downloading(caller: Caller) -> Iterator[None]:
    """A stream that is always full."""
    with caller.connect() as connection:
        connection.send(connection.request("GET", "/bytes/100000000000"))
        assert connection.line().startswith(b"HTTP/1.1 200")
        reading = threading.Thread(target=_read, args=(connection,))
        reading.start()
        try:
            yield
        finally:
            connection._socket.shutdown(2)
            reading.join(BACK)


def _read(connection: object) -> None:
    with contextlib.suppress(OSError, ValueError):
        while connection._raw.read(65536):  # type: ignore[attr-defined]
            pass


@pytest.mark.parametrize(("settings", "dead_after"), [(TUNED, 5.0), ({}, 15.0)], ids=["tuned", "by-default"])
def test_both_ends_notice_in_time_that_packets_vanish_with_an_idle_and_a_busy_tunnel(
    apart: BackendMember, net: MemberNetwork, settings: dict[str, object], dead_after: float
) -> None:
    with tower_of(apart, net, settings) as world, downloading(Caller(world.kubeconfig(BUSY))):
        agents = {name: world.members[name].agent.log for name in (IDLE, BUSY)}
        watched = {f"the agent of {name}": (log, "tunnel-cut", "lab") for name, log in agents.items()}
        watched |= {f"the server, of {name}": (world.server.log, "tunnel-detached", name) for name in agents}
        found: dict[str, tuple[float, float] | None] = {}

        with net.vanishing(), contextlib.suppress(LabError):
            vanished = time.time()

            def all_noticed() -> bool:
                found.update({who: noticed(*where, vanished) for who, where in watched.items()})
                return None not in found.values()

            wait_until(all_noticed, "every end that notices", dead_after + 20.0)
        for who, times in found.items():
            assert times is not None, f"{who} has not noticed"
            silence, after = times
            assert dead_after <= silence < dead_after + LATE, found
            assert after < dead_after + LATE, found
        for name in (IDLE, BUSY):
            world.until_state(name, "Connected", deadline=BACK)
            losses = [entry for entry in world.cluster(name)["history"] if entry["event"] == "detached"]
            assert [each["code"] for each in losses] == ["DEAD_PEER"], losses


def test_a_link_that_is_slow_and_full_is_not_taken_for_a_dead_one(member: BackendMember) -> None:
    (port,) = free_ports(1)
    with (
        tempfile.TemporaryDirectory(prefix="twr-") as folder,
        slow_way(Path(folder), port, bits_per_second=1e6, one_way=0.15) as way,
    ):
        settings = {"public_url": f"wss://127.0.0.1:{way}", **TUNED}
        with TowerWorld(Path(folder) / "w", settings=settings, tunnel_port=port) as world:
            world.join(BUSY, member, credential=member.by_token, settings=TUNED)
            caller, before = Caller(world.kubeconfig(BUSY)), tunnels(world, BUSY)
            with downloading(caller):
                until = time.monotonic() + 11.0  # more than twice the time of silence that is death
                while time.monotonic() < until:
                    answer = caller.ask("/small")
                    assert answer.status == 200, answer
                    assert json.loads(answer.body)["path"] == "/small"
            assert tunnels(world, BUSY) == before
            assert [entry["event"] for entry in world.cluster(BUSY)["history"]] == ["opened"], "on its first link still"
            assert "tunnel-cut" not in world.members[BUSY].agent.log.read_text()
