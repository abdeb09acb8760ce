"""The server's memory for an idle tunnel: many agents of one identity in one process beside it.

Run as a program it is those agents: `python -m bench.idle STATE_DIR URL COUNT`, which says `ready` and stays until its
standard input closes.
"""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
import time
from pathlib import Path

import uvloop

from bench.backend import Backend
from bench.tower import Tower, usage
from certs.handshake import server_verifier
from certs.identity_files import DirectoryIdentityStore
from certs.keys import signer
from protocol.aio.dial import FEATURES, dial
from protocol.aio.stream import IncomingStream
from protocol.aio.tunnel import Tunnel
from protocol.constants import CONTROL_SERVICE, Code
from protocol.flow import Budget
from protocol.handshake import AgentHandshake
from tower_agent.wayout import WayOut

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
        command = [sys.executable, "-m", "bench.idle", str(folder / "idle" / "agent"), tower.url, str(count)]
        agents = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert agents.stdout is not None
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


async def agents(state: Path, url: str, count: int) -> None:
    """Open `count` tunnels and keep them until standard input closes."""
    store = DirectoryIdentityStore(state)
    (host,) = await store.hosts()
    identity = await store.load(host)
    assert identity is not None
    bundle = identity.bundle
    target = WayOut(proxy_env=False).tunnel(url, bundle)
    budget = Budget(GIBIBYTE)
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> Tunnel:
        async with gate:
            handshake = AgentHandshake(
                cluster=identity.cluster,
                instance=f"idle-{number}",
                chain=identity.chain,
                sign=signer(identity.key),
                verify=server_verifier(bundle, time.time),
                nonce=secrets.token_bytes(32),
                features=FEATURES,
            )
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
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(agents(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
