"""`python -m bench.budgets [latency] [long] [readers]`: what bulk, distance and readers that stop cost; four minutes.

- `latency`: small GETs, alone and beside ten downloads, over a way of 100 Mbit/s and 40 ms that queues no more than it
  moves in that time.
- `long`: one download over a way of 100 ms, as fast as it comes and at 800 Mbit/s, beside the same one without a tower;
  both from 128 MiB on, when the windows have grown. As fast as it comes is as fast as two processors carry it: two TLS
  connections, the proxies and the way itself share them.
- `readers`: one download beside 200 callers that ask for much and read nothing, beside the same one alone.

The ways are real devices with the kernel's own TCP (`bench.longway`), which takes root. The member's end uses reno,
which fills every queue, unless `--congestion` names another.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import loads
from bench.backend import BULK_BYTES, Backend
from bench.longway import LongWay
from bench.tower import Tower
from tests.lab.processes import wait_until

MEGA = 1_000_000
MIB = 1024 * 1024
BULKS = 10
READERS = 200
ROUNDS = 3
GROWN = 128 * MIB  # of a download: by then every window on the way has grown, the kernel's too, which take their time


@dataclass(frozen=True, slots=True)
class Verdict:
    name: str
    figures: str
    ok: bool


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.budgets", description=__doc__)
    parser.add_argument("what", nargs="*", choices=[*MEASURES, []], help="of them only these")
    parser.add_argument("--congestion", default="reno", help="what the member's end of a way uses (default reno)")
    options = parser.parse_args()
    seen: list[Verdict] = []
    for name in options.what or MEASURES:
        with tempfile.TemporaryDirectory(prefix="tower-budgets-") as folder:
            seen += MEASURES[name](Path(folder), options.congestion)
    for each in seen:
        print(f"{'ok ' if each.ok else 'BAD'} {each.name}: {each.figures}")
    return 0 if all(each.ok for each in seen) else 1


def latency(folder: Path, congestion: str) -> list[Verdict]:
    """p99 beside bulk within twice the p99 alone and 5 ms."""
    with far_away(folder, congestion, round_trip=0.04, rate=100 * MEGA / 8) as (tower, _backend, _way):
        loads.wrk(tower.port, 1, 2)
        alone = loads.wrk(tower.port, 1, 15)
        with bulk(tower.port, BULKS):
            time.sleep(5.0)
            beside = loads.wrk(tower.port, 1, 30)
    most = 2 * alone.p99 + 5
    figures = (
        f"p50 {alone.p50:.1f} ms alone, {beside.p50:.1f} beside {BULKS} downloads; "
        f"p99 {alone.p99:.1f} alone, {beside.p99:.1f} beside (<= {most:.1f})"
    )
    return [Verdict("small GETs, 100 Mbit/s, 40 ms", figures, beside.p99 <= most)]


def long_way(folder: Path, congestion: str) -> list[Verdict]:
    """One stream at nine tenths of the direct way, once its window has grown."""
    seen = []
    for name, rate in (("unshaped", 0.0), ("800 Mbit/s", 800 * MEGA / 8)):
        part = folder / name.partition(" ")[0]
        part.mkdir()
        with far_away(part, congestion, round_trip=0.1, rate=rate, mtu=9000, offload=True) as (tower, backend, way):
            rounds = [(grown(backend.port, way.member), *with_load(lambda: grown(tower.port))) for _ in range(ROUNDS)]
        direct, through, busy = (statistics.median(each) for each in zip(*rounds, strict=True))
        figures = f"{through:.0f} MB/s of {direct:.0f} direct, {through / direct:.2f} (>= 0.9); "
        figures += f"the processors are {100 * busy:.0f} % busy meanwhile"
        seen.append(Verdict(f"one stream, 100 ms, {name}", figures, through >= 0.9 * direct))
    return seen


def readers(folder: Path, _congestion: str) -> list[Verdict]:
    """One that reads keeps nine tenths of its speed."""
    backend = Backend(folder / "backend")
    try:
        tower = Tower(folder / "tower", backend, mode="l7", outer="wss")
        try:
            grown(tower.port)  # both processes have grown to their size then
            before = [grown(tower.port) for _ in range(ROUNDS)]
            with stopped(tower.port, READERS):
                beside = statistics.median(grown(tower.port) for _ in range(2 * ROUNDS))
            wait_until(lambda: streams(tower) < READERS // 10, "the end of those that do not read", 60.0)
            # Before and after: what else the machine does changes too.
            alone = statistics.median(before + [grown(tower.port) for _ in range(ROUNDS)])
        finally:
            tower.stop()
    finally:
        backend.stop()
    figures = f"{beside:.0f} MB/s of {alone:.0f} alone, {beside / alone:.2f} (>= 0.9)"
    return [Verdict(f"one that reads beside {READERS} that do not", figures, beside >= 0.9 * alone)]


MEASURES: dict[str, Callable[[Path, str], list[Verdict]]] = {"latency": latency, "long": long_way, "readers": readers}


@contextlib.contextmanager
def far_away(
    folder: Path, congestion: str, *, round_trip: float, rate: float, mtu: int = 1500, offload: bool = False
) -> Iterator[tuple[Tower, Backend, LongWay]]:
    """A tower whose agent and backend are at the end of such a way."""
    with LongWay(folder, round_trip=round_trip, rate=rate, mtu=mtu, offload=offload) as way:
        way.run("sysctl", "-qw", f"net.ipv4.tcp_congestion_control={congestion}")
        backend = Backend(folder / "backend", way=way)
        try:
            tower = Tower(folder / "tower", backend, mode="l7", outer="wss", way=way)
            try:
                yield tower, backend, way
            finally:
                tower.stop()
        finally:
            backend.stop()


def grown(port: int, host: str = "127.0.0.1") -> float:
    """MB/s of one download after its beginning."""
    return loads.grown(port, GROWN, BULK_BYTES, host=host)


def with_load(measure: Callable[[], float]) -> tuple[float, float]:
    """What it gives, and how much of the processors was in use: near 1, they are what is measured."""
    before = processors()
    found = measure()
    idle, everything = (after - then for after, then in zip(processors(), before, strict=True))
    return found, 1 - idle / everything


def processors() -> tuple[int, int]:
    """Ticks in which they did nothing, and all."""
    ticks = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


@contextlib.contextmanager
def bulk(port: int, streams: int) -> Iterator[None]:
    """Downloads that go on all the time."""
    url = f"https://127.0.0.1:{port}/bulk"
    command = ["curl", "-sS", "-k", "-H", loads.AUTHORIZATION, "-o", "/dev/null", url]
    running = [subprocess.Popen(command) for _ in range(streams)]
    try:
        yield
        if any(each.poll() is not None for each in running):
            raise loads.LoadError("a download ended before the measurement did")
    finally:
        for each in running:
            each.kill()
            each.wait()


@contextlib.contextmanager
def stopped(port: int, count: int) -> Iterator[None]:
    """Callers that have asked for all of it and read nothing, once nothing moves to them any more."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            caller = stack.enter_context(context.wrap_socket(raw))
            caller.sendall(f"GET /bulk HTTP/1.1\r\nHost: x\r\n{loads.AUTHORIZATION}\r\n\r\n".encode())
            made.append(caller)
        waiting = [-1, -2, -3]

        def still() -> bool:
            waiting.append(sum(queued(each) for each in made))
            time.sleep(0.5)
            return len(set(waiting[-3:])) == 1

        wait_until(still, "the end of all movement", 60.0)
        yield


def streams(tower: Tower) -> int:
    """Of all tunnels."""
    return sum(int(each["streams"]) for each in json.loads(tower.ctl("get", "tunnels", "-o", "json"))["items"])


def queued(caller: socket.socket) -> int:
    """Bytes that have come and nobody reads."""
    import array
    import fcntl
    import termios

    size = array.array("i", [0])
    fcntl.ioctl(caller.fileno(), termios.FIONREAD, size)
    return size[0]


if __name__ == "__main__":
    sys.exit(main())
