"""`python -m bench.kubesphere`: the dialect `kubesphere-v1`, ours beside the Go peers, one machine, one run.

Three pairs take turns: Go with Go, our server with the Go agent, our agent with the Go proxy. All of them relay to the
same nginx, and the same wrk and curl call. It writes `bench/out/kubesphere-v1.json`, a list of rows (first the server,
then the agent; `tower` is ours). Throughput on a busy machine says little: CPU time for a unit of work is what holds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import yaml

from bench import loads
from bench.backend import BULK_BYTES, Backend
from bench.tower import SCRIPTS, reset_peak, usage
from tests.interop.peers import CLUSTER, TOKEN, GoAgent, GoProxy, OurAgent, Vintage
from tests.lab.debian import require
from tests.lab.processes import Child, free_ports

OUT = Path(__file__).parent / "out" / "kubesphere-v1.json"
GIB = 1024**3
START_DEADLINE = 60.0
CONNECTS = 10  # agents one after the other, for the server's CPU time of one
SETTLE_SECONDS = 1.0  # after an agent has connected: the Go proxy makes its kubeconfig then
UNITS = {
    "bulk_down_1": "MB/s", "bulk_down_4": "MB/s", "bulk_up_1": "MB/s", "get_1": "req/s", "get_16": "req/s",
    "get_64": "req/s", "connect_8": "conn/s", "cpu_s_per_gib": "s", "cpu_ms_per_agent_connect": "ms",
    "rss_server_mib": "MiB", "rss_agent_mib": "MiB",
}  # fmt: skip
LESS = ("cpu_", "rss_")
CONNECT_COST = "cpu_ms_per_agent_connect"
REAL = {
    "bulk_down_1": 127, "bulk_down_4": 144, "get_1": 2090, "get_16": 1652, "get_64": 1402, "connect_8": 758,
    "cpu_s_per_gib": 13.1, "cpu_ms_per_agent_connect": 124,
}  # fmt: skip
"""What Go Tower's own binaries were measured at, on a quiet machine. The peers stand for them where go-go is within
0.7 to 1.3 of it on that machine; on another one (or a busy one) the rows must at least move together. On a machine half
as fast the same program, built from its public source, took turns with the peers: their rates were 0.77 to 1.24 of
its own."""


@dataclass(frozen=True)
class Row:
    """One figure of one pair."""

    pair: str
    metric: str
    value: float
    unit: str


class Pair(Protocol):
    """A server and an agent that serve one cluster on `port`."""

    name: str
    port: int

    @property
    def server(self) -> Child: ...
    @property
    def agent(self) -> Child: ...
    def start_agent(self) -> None: ...
    def stop_agent(self) -> None: ...
    def stop(self) -> None: ...


class GoHost:
    """The Go proxy with one of the agents."""

    def __init__(self, folder: Path, agent: Callable[[str], GoAgent | OurAgent], name: str, vintage: Vintage) -> None:
        self.name = name
        self._proxy = GoProxy(folder / "proxy", vintage)
        self.port = self._proxy.kubernetes_port
        self._agent = agent(self._proxy.url)
        self._proxy.start()

    @property
    def server(self) -> Child:
        return self._proxy.child

    @property
    def agent(self) -> Child:
        return self._agent.child

    def start_agent(self) -> None:
        self._agent.start()

    def stop_agent(self) -> None:
        self._agent.stop()

    def stop(self) -> None:
        self._agent.stop()
        self._proxy.stop()


def go_go(folder: Path, backend: Backend, vintage: Vintage) -> Pair:
    def agent(url: str) -> GoAgent:
        return GoAgent(folder / "agent", vintage, url, credential=backend.kubeconfig)

    return GoHost(folder, agent, "go-go", vintage)


def go_tower(folder: Path, backend: Backend, vintage: Vintage) -> Pair:
    def agent(url: str) -> OurAgent:
        return OurAgent(folder / "agent", url, kubeconfig=backend.kubeconfig)

    return GoHost(folder, agent, "go-tower", vintage)


class TowerHost:
    """Our server with the Go agent."""

    name = "tower-go"

    def __init__(self, folder: Path, backend: Backend, vintage: Vintage) -> None:
        folder.mkdir(parents=True)
        tunnel, legacy, health, self.port = free_ports(4)
        self._socket = folder / "admin.sock"
        config = {
            "host": "bench-host",
            "public_url": f"ws://127.0.0.1:{tunnel}",
            "listen": f"127.0.0.1:{tunnel}",
            "plain_http": True,
            "kubesphere_v1": {"enabled": True, "listen": f"127.0.0.1:{legacy}"},
            "state_dir": str(folder / "server"),
            "admin_socket": str(self._socket),
            "health_address": f"127.0.0.1:{health}",
            "ports": {"range": f"{self.port}-{self.port}", "bind": "127.0.0.1"},
            "log": {"level": "warning"},
        }
        (folder / "server.yaml").write_text(yaml.safe_dump(config))
        argv: list[str | Path] = [SCRIPTS / "tower-server", "run", "--config", folder / "server.yaml"]
        self.server = Child("tower-server", argv, log=folder / "server.log")
        url = f"http://127.0.0.1:{legacy}"
        self._agent = GoAgent(folder / "agent", vintage, url, credential=backend.kubeconfig)
        try:
            self.server.until(self._socket.exists, "admin socket", START_DEADLINE)
            self._ctl("add", "cluster", CLUSTER, "--no-join")
            self._ctl("create", "legacy-token", CLUSTER, "--token-file", "-", stdin=TOKEN)
        except BaseException:
            self.stop()
            raise

    @property
    def agent(self) -> Child:
        return self._agent.child

    def start_agent(self) -> None:
        self._agent.start()

    def stop_agent(self) -> None:
        self._agent.stop()

    def stop(self) -> None:
        self._agent.stop()
        self.server.stop()

    def _ctl(self, *arguments: str, stdin: str = "") -> None:
        command = [str(SCRIPTS / "towerctl"), "--socket", str(self._socket), *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            raise RuntimeError(f"towerctl {' '.join(arguments)}: {done.stderr.strip()}\n{self.server.tail()}")


PAIRS: dict[str, Callable[[Path, Backend, Vintage], Pair]] = {
    "go-go": go_go,
    "tower-go": TowerHost,
    "go-tower": go_tower,
}


def answers(pair: Pair) -> Callable[[], bool]:
    """Whether a request gets through."""
    command = ["curl", "-sk", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}:%{size_download}"]
    command += ["-H", "Authorization: Bearer b", f"https://127.0.0.1:{pair.port}/small"]

    def ask() -> bool:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout == "200:1024"

    return ask


def up(pair: Pair) -> None:
    pair.start_agent()
    pair.agent.until(answers(pair), "an answer through the tunnel", START_DEADLINE)


def rate_of(port: int, connections: int, seconds: int, *, close: bool = False) -> float:
    return loads.wrk(port, connections, seconds, close=close).rate


def one_round(pair: Pair, backend: Backend, seconds: int, metrics: Sequence[str]) -> dict[str, float]:
    """The rates that are asked for of one pair, and the CPU time of both processes for a unit of each."""
    figures: dict[str, float] = {}

    def spent(metric: str, units: Callable[[float], float], measure: Callable[[], float]) -> None:
        if metric not in metrics:
            return
        before = [usage(child.pid).cpu for child in (pair.server, pair.agent)]
        figures[metric] = measure()
        done = units(figures[metric])
        for name, child, was in zip(("server", "agent"), (pair.server, pair.agent), before, strict=True):
            figures[f"cpu_{name}:{metric}"] = (usage(child.pid).cpu - was) * 1000 / done

    gib, part = BULK_BYTES / GIB, BULK_BYTES // 4 * 4 / GIB
    spent("bulk_down_1", lambda _: gib, lambda: loads.download(pair.port, 1, BULK_BYTES))
    if "bulk_down_1" in metrics:
        figures["cpu_s_per_gib"] = (figures["cpu_server:bulk_down_1"] + figures["cpu_agent:bulk_down_1"]) / 1000
    spent("bulk_down_4", lambda _: part, lambda: loads.download(pair.port, 4, BULK_BYTES))
    spent("bulk_up_1", lambda _: gib, lambda: loads.upload(pair.port, backend.bulk_file))
    for connections in (1, 16, 64):
        ask = partial(rate_of, pair.port, connections, seconds)
        spent(f"get_{connections}", lambda rate: rate * seconds, ask)
    spent("connect_8", lambda rate: rate * seconds, partial(rate_of, pair.port, 8, seconds, close=True))
    return figures


def connect_cost(pair: Pair, times: int = CONNECTS) -> float:
    """Milliseconds of the server's CPU time for an agent that comes, registers and leaves."""
    pair.stop_agent()
    time.sleep(SETTLE_SECONDS)
    before = usage(pair.server.pid).cpu
    for _ in range(times):
        pair.start_agent()
        time.sleep(SETTLE_SECONDS)
        pair.stop_agent()
    time.sleep(SETTLE_SECONDS)
    return (usage(pair.server.pid).cpu - before) * 1000 / times


def measure(folder: Path, backend: Backend, names: Sequence[str], options: argparse.Namespace) -> list[Row]:
    """The pairs take turns, so that what the machine does meanwhile falls on all of them."""
    pairs: list[Pair] = []
    kept: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    try:
        for name in names:
            pairs.append(PAIRS[name](folder / name, backend, options.vintage))
            up(pairs[-1])
        time.sleep(SETTLE_SECONDS)
        for pair in pairs:
            for child in (pair.server, pair.agent):
                reset_peak(child.pid)
        for turn in range(options.rounds):
            for pair in pairs:
                say(f"{pair.name}, round {turn + 1} of {options.rounds}")
                for metric, value in one_round(pair, backend, options.seconds, options.metric or tuple(UNITS)).items():
                    kept[pair.name].setdefault(metric, []).append(value)
        for pair in pairs:
            kept[pair.name]["rss_server_mib"] = [usage(pair.server.pid).peak]
            kept[pair.name]["rss_agent_mib"] = [usage(pair.agent.pid).peak]
        for pair in pairs if not options.metric or CONNECT_COST in options.metric else ():
            say(f"{pair.name}: {CONNECTS} agents")
            kept[pair.name][CONNECT_COST] = [connect_cost(pair)]
    finally:
        for pair in pairs:
            pair.stop()
    return [
        Row(name, metric, round(statistics.median(kept[name][metric]), 3), unit)
        for name in names
        for metric, unit in (
            UNITS | {metric: "ms" for metric in kept[name] if metric.startswith("cpu_") and ":" in metric}
        ).items()
        if metric in kept[name]
    ]


def table(rows: Sequence[Row]) -> str:
    """A line a metric; beside each figure of ours how it stands to Go with Go (above 1: better).

    The last rows are each process' CPU time for a unit of work: a GiB, a request, a connection. On a machine that does
    something else as well they are what can be compared.
    """
    found = {(row.pair, row.metric): row.value for row in rows}
    names = list(dict.fromkeys(row.pair for row in rows))
    lines = [f"{'METRIC':26}" + "".join(f"{name:>22}" for name in names) + "  UNIT    go-go/real"]
    for metric, unit in dict.fromkeys((row.metric, row.unit) for row in rows):
        cells = []
        for name in names:
            value, base = found[name, metric], found.get(("go-go", metric))
            ratio = ""
            if base and value and name != "go-go":
                ratio = f" ({base / value if metric.startswith(LESS) else value / base:.2f})"
            cells.append(f"{value:,.{1 if value >= 10 else 3}f}{ratio}".rjust(22))
        base, real = found.get(("go-go", metric)), REAL.get(metric)
        like = f"{base / real:.2f}" if base and real else ""
        lines.append(f"{metric:26}{''.join(cells)}  {unit:8}{like}".rstrip())
    return "\n".join(lines)


def main() -> int:
    """Run the whole and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.kubesphere", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of all pairs in turn (default 3)")
    parser.add_argument("--seconds", type=int, default=4, help="of each wrk run (default 4)")
    parser.add_argument("--vintage", choices=("2020", "2023"), default="2023", help="of the Go peers (default 2023)")
    parser.add_argument("--only", choices=tuple(PAIRS), action="append", help="these pairs (default all)")
    parser.add_argument("--metric", choices=tuple(UNITS), action="append", help="these alone, and nothing is written")
    options = parser.parse_args()
    if not require(["nginx-light", "wrk", "curl"]):
        return 1
    with tempfile.TemporaryDirectory(prefix="tower-bench-") as name:
        backend = Backend(Path(name) / "backend")
        try:
            rows = measure(Path(name), backend, options.only or tuple(PAIRS), options)
        finally:
            backend.stop()
    if not options.metric:
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(json.dumps([asdict(row) for row in rows if row.metric in UNITS], indent=1) + "\n")
    print(table(rows))
    return 0


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
