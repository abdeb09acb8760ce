"""`make bench`: direct and through the tunnel, interleaved, as ratios of medians; about 12 minutes.

Everything runs on this machine: nginx as the member's apiserver, tower server, agent, and wrk and curl as callers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import loads
from bench.backend import BULK_BYTES, Backend
from bench.idle import idle_tunnel_kib
from bench.report import Row, compared, table, void, write
from bench.tower import Mode, Outer, Tower, reset_peak, usage
from tests.lab.debian import require

OUT = Path(__file__).parent / "out"
GIB = 1024**3
SETTLE_SECONDS = 2.0  # between starting and measuring idle memory

Figures = dict[str, float]
UNITS = {"bulk": "MB/s", "get": "req/s", "connect": "conn/s", "p50": "ms", "p99": "ms"}  # by a metric's first word


def measures(backend: Backend, seconds: int) -> list[Callable[[int], Figures]]:
    """What is compared; each takes a port and gives figures by metric."""

    def gets(connections: int) -> Callable[[int], Figures]:
        def measure(port: int) -> Figures:
            seen = loads.wrk(port, connections, seconds)
            name = f"get_{connections}"
            return {name: seen.rate, f"p50_{name}": seen.p50, f"p99_{name}": seen.p99}

        return measure

    return [
        lambda port: {"bulk_down_1": loads.download(port, 1, BULK_BYTES)},
        lambda port: {"bulk_down_8": loads.download(port, 8, BULK_BYTES)},
        lambda port: {"bulk_up_1": loads.upload(port, backend.bulk_file)},
        lambda port: {"bulk_up_8": loads.upload(port, backend.bulk_part, streams=8)},
        gets(1),
        gets(16),
        gets(64),
        lambda port: {"connect_8": loads.wrk(port, 8, seconds, close=True).rate},
    ]


def main() -> int:
    """Run the whole and report."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of direct and tunnel in turn (default 3)")
    parser.add_argument("--seconds", type=int, default=4, help="of each wrk run (default 4)")
    parser.add_argument("--agents", type=int, default=1000, help="idle agents for the memory of a tunnel")
    parser.add_argument("--only", choices=("l7-wss", "l7-ws", "passthrough-wss"), help="one of the three ways")
    options = parser.parse_args()
    if not require(["nginx-light", "wrk", "curl"]):
        return 1
    ways: list[tuple[Mode, Outer]] = [("l7", "wss"), ("passthrough", "wss"), ("l7", "ws")]
    if options.only:
        ways = [way for way in ways if "-".join(way) == options.only]
    optimised = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    if not optimised and sys.base_prefix != "/usr":  # Debian's own is, by another way than this option
        say("this Python was built without --enable-optimizations: expect a fifth fewer requests than with Debian's")
    started = time.monotonic()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="tower-bench-") as name:
        folder = Path(name)
        backend = Backend(folder / "backend")
        try:
            for mode, outer in ways:
                say(f"{mode} over {outer}: starting")
                rows += way(folder / f"{mode}-{outer}", backend, mode, outer, options.rounds, options.seconds)
            if not options.only and options.agents:
                say(f"{options.agents} idle agents")
                rows.append(
                    Row("l7", "wss", "idle_tunnel_kib", idle_tunnel_kib(folder, backend, options.agents), "KiB")
                )
        finally:
            backend.stop()
            if rows:  # what was measured before something failed took minutes
                write(OUT, rows)
                print(table(rows))
    print(f"\n{time.monotonic() - started:.0f} s; written to {OUT}/latest.json and latest.svg")
    if reasons := void(rows):
        print(f"VOID: {'; '.join(reasons)}: this machine was too slow or too busy to say anything", file=sys.stderr)
        return 1
    return 0


def way(folder: Path, backend: Backend, mode: Mode, outer: Outer, rounds: int, seconds: int) -> list[Row]:
    """All rows of one mode and outer transport."""
    tower = Tower(folder, backend, mode=mode, outer=outer)
    processes = {"server": tower.server.pid, "agent": tower.agent.pid}
    try:
        time.sleep(SETTLE_SECONDS)
        idle = {name: usage(pid).rss for name, pid in processes.items()}
        for pid in processes.values():
            reset_peak(pid)
        direct: dict[str, list[float]] = {}
        through: dict[str, list[float]] = {}
        cpu: list[float] = []
        for turn in range(rounds):
            say(f"{mode} over {outer}, round {turn + 1} of {rounds}")
            for measure in measures(backend, seconds):
                _keep(direct, measure(backend.port))
                before = sum(usage(pid).cpu for pid in processes.values())
                figures = measure(tower.port)
                _keep(through, figures)
                if "bulk_down_1" in figures:
                    cpu.append((sum(usage(pid).cpu for pid in processes.values()) - before) * GIB / BULK_BYTES)
        rows = [
            compared(mode, outer, metric, UNITS[metric.partition("_")[0]], through[metric], direct[metric])
            for metric in through
        ]
        rows.append(Row(mode, outer, "cpu_s_per_gib", round(statistics.median(cpu), 3), "s"))
        for name, pid in processes.items():
            rows.append(Row(mode, outer, f"rss_{name}_mib", round(usage(pid).peak, 1), "MiB"))
            rows.append(Row(mode, outer, f"rss_{name}_idle_mib", round(idle[name], 1), "MiB"))
    finally:
        tower.stop()
    return rows


def _keep(into: dict[str, list[float]], figures: Figures) -> None:
    for metric, value in figures.items():
        into.setdefault(metric, []).append(value)


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
