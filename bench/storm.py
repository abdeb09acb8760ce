"""`python -m bench.storm`: every agent comes back after the server was killed; about two minutes for 2,000 of them.

The server is a process with the default admission, the agents (two of each cluster, one interpreter for all of them)
are `bench.crowd`. A witness, one more agent in a process of its own, is back first and pings through its tunnel all the
time: what it sees is what agents already served see.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop
import yaml

from bench.crowd import Papers, enlist
from bench.tower import SCRIPTS
from certs.handshake import server_verifier
from certs.keys import key_from_pem, signer
from certs.verify import TrustBundle, load_chain
from daemon.log import configure
from daemon.process import Process
from protocol.aio.dial import FEATURES, dial
from protocol.aio.hops import DialError
from protocol.aio.tunnel import Tunnel
from protocol.constants import CONTROL_SERVICE, Code
from protocol.errors import ProtocolError
from protocol.flow import Budget
from protocol.handshake import AgentHandshake
from tests.lab.processes import Child, free_ports
from tower_agent.wayout import WayOut
from tower_server.config import ServerConfig
from tower_server.ports import PortRange, can_bind
from tower_server.server import Server

REPLICAS = 2
ALL_BACK = 60.0  # seconds
LAG = 0.25  # seconds, of which the server's loop may be late
PATIENCE = 120.0
PING_EVERY = 0.02
LETTING_GO = 20.0
LAG_BUCKET = re.compile(r'tower_event_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)')
GIBIBYTE = 1024**3


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.storm", description=__doc__)
    parser.add_argument("--agents", type=int, default=2000)
    parser.add_argument("--orderly", action="store_true", help="stop the server by SIGTERM, which tells agents when")
    parser.add_argument("--profile", type=Path, help="where the server's cProfile goes (its CPU then says nothing)")
    options = parser.parse_args()
    configure(level="error")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loops = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    with tempfile.TemporaryDirectory(prefix="tower-storm-") as name, loops as runner:
        seen = runner.run(storm(Path(name), options.agents, orderly=options.orderly, profile=options.profile))
    return report(seen)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen from the restart, when the server was ready again, until all agents were back."""

    seconds: float
    seen: dict[str, Any]  # by the agents
    first: str  # metrics of the server
    last: str
    pings: list[tuple[float, float]]  # seconds that each took, and when it ended
    left_open: int  # descriptors of the server after all agents have gone, above those of its start


async def storm(
    folder: Path,
    agents: int,
    *,
    orderly: bool = False,
    profile: Path | None = None,
    admission: dict[str, Any] | None = None,
) -> Outcome:
    """One storm with `admission` in place of the default one."""
    config = _config(folder, agents // REPLICAS + 1)
    say(f"{agents} agents of {agents // REPLICAS} clusters")
    *many, own = await _prepare(config, agents // REPLICAS)
    server = _server(folder, config, None)
    crowd = await _crowd(folder, config, many)
    loop = asyncio.get_running_loop()
    try:
        await _line(crowd)
        say("all are there")
        if orderly:
            await asyncio.to_thread(server.stop)
        else:
            _kill(server)
        _begin_anew(crowd)
        server = _server(folder, config | {"admission": admission or {}}, profile)
        open_first, began = _descriptors(server), loop.time()
        witness = asyncio.create_task(_witness(config, own))
        first = _metrics(config)
        at, seen = await _line(crowd)
        last = _metrics(config)
        witness.cancel()
        pings = await witness
        await _end(crowd)
        left_open = await _settled(server, open_first)
    finally:
        await _end(crowd)
        await asyncio.to_thread(server.stop)
    assert first is not None
    assert last is not None
    return Outcome(at - began, seen, first, last, [(took, when - began) for took, when in pings], left_open)


def _begin_anew(crowd: asyncio.subprocess.Process) -> None:
    assert crowd.stdin is not None
    crowd.stdin.write(b"\n")


async def _end(crowd: asyncio.subprocess.Process) -> None:
    assert crowd.stdin is not None
    crowd.stdin.close()
    try:
        await asyncio.wait_for(crowd.wait(), 30)
    except TimeoutError:
        crowd.kill()
        await crowd.wait()


def _descriptors(server: Child) -> int:
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))


async def _settled(server: Child, before: int) -> int:
    """How many descriptors more than `before` stay open."""
    end = time.monotonic() + LETTING_GO
    while (more := _descriptors(server) - before) > 0 and time.monotonic() < end:
        await asyncio.sleep(0.1)
    return max(0, more)


def _config(folder: Path, clusters: int) -> dict[str, Any]:
    ports = run_of_ports(clusters)
    tunnel, health = free_ports(2)
    return {
        "host": "storm-host",
        "public_url": f"wss://127.0.0.1:{tunnel}",
        "listen": f"127.0.0.1:{tunnel}",
        "state_dir": str(folder / "server"),
        "admin_socket": str(folder / "admin.sock"),
        "health_address": f"127.0.0.1:{health}",
        "ports": {"range": f"{ports.first}-{ports.last}", "bind": "127.0.0.1"},
        "log": {"level": "warning"},
    }


def run_of_ports(size: int) -> PortRange:
    """Below those that tests and the kernel give out; a whole run of them that nobody holds."""
    for first in range(random.randrange(10000, 12000), 20000 - size, 100):
        if all(can_bind("127.0.0.1", port) for port in range(first, first + size)):
            return PortRange(first, first + size - 1)
    raise SystemExit(f"this machine has no free run of {size} ports between 10000 and 20000")


async def _prepare(config: dict[str, Any], clusters: int) -> list[Papers]:
    server = Server(ServerConfig.model_validate(config), Process(name="tower-server"), version="0.0.0+storm")
    await server.start()
    try:
        return [
            *await enlist(server.services, clusters=clusters, replicas=REPLICAS),
            *await enlist(server.services, clusters=1, replicas=1, name="witness"),
        ]
    finally:
        await server.stop()


def _server(folder: Path, config: dict[str, Any], profile: Path | None) -> Child:
    file = folder / "server.yaml"
    file.write_text(yaml.safe_dump(config))
    run: list[str | Path] = [SCRIPTS / "tower-server", "run", "--config", file]
    command = run if profile is None else [sys.executable, "-m", "cProfile", "-o", profile, *run]
    child = Child("tower-server", command, log=folder / "server.log")
    child.until(lambda: _metrics(config) is not None, "metrics", 60.0)
    return child


def _kill(server: Child) -> None:
    server.send(signal.SIGKILL)
    server.wait(10.0)


async def _crowd(folder: Path, config: dict[str, Any], papers: Sequence[Papers]) -> asyncio.subprocess.Process:
    file = folder / "papers.json"
    file.write_text(json.dumps([asdict(each) for each in papers]))
    command = [sys.executable, "-m", "bench.crowd", str(file), config["public_url"]]
    return await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


async def _line(crowd: asyncio.subprocess.Process) -> tuple[float, dict[str, Any]]:
    """When all have come, and what was refused until then."""
    assert crowd.stdout is not None
    async with asyncio.timeout(PATIENCE):
        line = (await crowd.stdout.readline()).decode()
    if not line.startswith("all "):
        raise SystemExit(f"the agents ended: {line!r}")
    _, at, seen = line.split(" ", 2)
    return float(at), json.loads(seen)


async def _witness(config: dict[str, Any], papers: Papers) -> list[tuple[float, float]]:
    """Round trips through one tunnel and when they ended, until cancelled."""
    loop, seen = asyncio.get_running_loop(), list[tuple[float, float]]()
    tunnel: Tunnel | None = None
    bundle = TrustBundle.from_pem(papers.trust.encode())
    target = WayOut(proxy_env=False).tunnel(config["public_url"], bundle)
    try:
        while True:
            try:
                if tunnel is None or tunnel.closed is not None:
                    handshake = AgentHandshake(
                        cluster=papers.cluster,
                        instance="witness-1",
                        chain=load_chain(papers.chain.encode()),
                        sign=signer(key_from_pem(papers.key.encode(), what="the witness")),
                        verify=server_verifier(bundle, time.time),
                        nonce=secrets.token_bytes(32),
                        features=FEATURES,
                    )
                    tunnel = await dial(
                        target,
                        handshake=handshake,
                        instance="witness-1",
                        budget=Budget(GIBIBYTE),
                        on_stream=_refuse,
                    )
                began = loop.time()
                await tunnel.ping(30.0)
                seen.append((loop.time() - began, loop.time()))
            except (DialError, ProtocolError):
                pass
            await asyncio.sleep(PING_EVERY)
    except asyncio.CancelledError:
        if tunnel is not None:
            tunnel.close(Code.SHUTDOWN, "the storm is over")
        return seen


def _refuse(stream: Any) -> None:
    if stream.service == CONTROL_SERVICE:
        stream.accept(asyncio.Protocol())
    else:
        stream.refuse(Code.UNKNOWN_SERVICE, "the witness serves nothing")


def _metrics(config: dict[str, Any]) -> str | None:
    try:
        with urllib.request.urlopen(f"http://{config['health_address']}/metrics", timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:
        return None


def report(outcome: Outcome) -> int:
    """Prints the figures; 1 when one is out of its bounds."""
    seen, first, last, pings = outcome.seen, outcome.first, outcome.last, sorted(outcome.pings)
    handshakes = _difference(first, last, r'tower_handshakes_total\{result="ok"\}')
    cpu = _difference(first, last, "process_cpu_seconds_total")
    lag = _lag(first, last)
    p50, p99, most = (_at(lag, part) for part in (0.5, 0.99, 1.0))
    slow, slowest = pings[len(pings) * 99 // 100][0], pings[-1]
    print(f"all back after            {outcome.seconds:8.1f} s   (<= {ALL_BACK:.0f})")
    print(f"refused with retry-after  {sum(seen['with_retry_after'].values()):8d}     {seen['with_retry_after']}")
    print(f"refused without           {sum(seen['without'].values()):8d}     (0) {seen['without']} {seen['last']}")
    print(f"dials that got no answer  {seen['unanswered']:8d}     (the kernel's queue was full)")
    print(f"server CPU a handshake    {1000 * cpu / max(1, handshakes):8.2f} ms  of {handshakes:.0f}, probes and all")
    print(
        f"server loop lag           {p50:8g} s   or less; p99 {p99:g}, max {most:g} (<= {LAG:g}), of {lag[-1][1]:.0f}"
    )
    print(
        f"ping of one that is served{1000 * pings[len(pings) // 2][0]:8.1f} ms  p99 {1000 * slow:.0f}, max"
        f" {1000 * slowest[0]:.0f} at {slowest[1]:.1f} s, of {len(pings)}"
    )
    print(f"descriptors left open     {outcome.left_open:8d}     (0)")
    bad = outcome.seconds > ALL_BACK or seen["without"] or seen["failures"] or most > LAG or outcome.left_open
    return 1 if bad else 0


def _difference(first: str, last: str, name: str) -> float:
    def value(text: str) -> float:
        found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    return value(last) - value(first)


def _lag(first: str, last: str) -> list[tuple[float, float]]:
    """Upper bounds and how many samples of the time between lie at or below each."""
    before = {bound: float(count) for bound, count in LAG_BUCKET.findall(first)}
    return [(float(bound), float(count) - before[bound]) for bound, count in LAG_BUCKET.findall(last)]


def _at(lag: list[tuple[float, float]], part: float) -> float:
    return next(bound for bound, count in lag if count >= part * lag[-1][1])


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"storm: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
