"""The server's memory for an idle tunnel: many tunnels of a few agents, in one process beside it.

Run as a program it is those agents: `python -m bench.idle STATE_DIR COUNT`, which enrols them by the token in the first
line of its standard input, says `ready` and stays until that closes.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import time
from pathlib import Path

import uvloop

from bench.backend import Backend
from bench.tower import CLUSTER, Tower, usage
from certs.handshake import server_verifier
from certs.identity_files import DirectoryIdentityStore
from certs.keys import signer
from daemon.log import configure
from protocol.aio.dial import FEATURES, dial
from protocol.aio.stream import IncomingStream
from protocol.aio.tunnel import Tunnel
from protocol.constants import CONTROL_SERVICE, Code
from protocol.flow import Budget
from protocol.handshake import AgentHandshake
from tower_agent.enrol import Enrolment
from tower_agent.wayout import WayOut
from tower_server.tunnels import MAX_OF_AGENT

DEADLINE = 180.0
AT_ONCE = 8  # handshakes
SETTLE_SECONDS = 5.0
GIBIBYTE = 1024**3


def idle_tunnel_kib(folder: Path, backend: Backend, count: int) -> float:
    """KiB of the server's memory for each of `count` idle tunnels over wss."""
    tower = Tower(folder / "idle", backend, mode="l7", outer="wss")
    try:
        time.sleep(SETTLE_SECONDS)
        before = usage(tower.server.pid).rss
        uses = str(-(-count // MAX_OF_AGENT))
        token = json.loads(tower.ctl("create", "token", CLUSTER, "--uses", uses, "-o", "json"))["token"]
        command = [sys.executable, "-m", "bench.idle", str(folder / "idle" / "crowd"), str(count)]
        agents = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert agents.stdin is not None
            assert agents.stdout is not None
            agents.stdin.write(f"{token}\n")
            agents.stdin.flush()
            if agents.stdout.readline().strip() != "ready":
                raise RuntimeError(f"the idle agents ended with {agents.wait(10)}")
            time.sleep(SETTLE_SECONDS)
            return round((usage(tower.server.pid).rss - before) * 1024 / count, 1)
        finally:
            agents.communicate(timeout=30)
    finally:
        tower.stop()


class _Quiet(asyncio.Protocol):
    """Takes the control stream and says nothing."""

    def eof_received(self) -> bool:
        return False


def _on_stream(stream: IncomingStream) -> None:
    if stream.service == CONTROL_SERVICE:
        stream.accept(_Quiet())
    else:
        stream.refuse(Code.UNKNOWN_SERVICE, "an idle agent serves nothing")


async def agents(folder: Path, count: int) -> None:
    """Open `count` tunnels, as many of one agent as a server takes, and keep them until standard input closes."""
    token, way = sys.stdin.readline().strip(), WayOut(proxy_env=False)
    enrolled = [
        await Enrolment(token, store=DirectoryIdentityStore(folder / str(number)), way=way).run()
        for number in range(-(-count // MAX_OF_AGENT))
    ]
    budget = Budget(GIBIBYTE)
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> Tunnel:
        identity = enrolled[number // MAX_OF_AGENT]
        async with gate:
            handshake = AgentHandshake(
                cluster=identity.cluster,
                instance=f"idle-{number}",
                chain=identity.chain,
                sign=signer(identity.key),
                verify=server_verifier(identity.bundle, time.time),
                nonce=secrets.token_bytes(32),
                features=FEATURES,
            )
            target = way.tunnel(identity.url, identity.bundle)
            return await dial(
                target, handshake=handshake, instance=f"idle-{number}", budget=budget, on_stream=_on_stream
            )

    async with asyncio.timeout(DEADLINE):
        tunnels = await asyncio.gather(*(one(number) for number in range(count)))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    lost = [tunnel for tunnel in tunnels if tunnel.closed is not None]
    for tunnel in tunnels:
        tunnel.close(Code.SHUTDOWN, "the measurement is over")
    if lost:
        raise SystemExit(f"{len(lost)} of {count} idle tunnels were lost: {lost[0].closed}")


if __name__ == "__main__":
    configure(level="error")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(agents(Path(sys.argv[1]), int(sys.argv[2])))
