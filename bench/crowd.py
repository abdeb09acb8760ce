"""Many agents in one process: each with a key and certificates of its own, real TLS and handshakes, and the agent's own
way of dialling, waiting and dialling again. What they lack is a member behind them: `/readyz` is answered here.

Run as a program, `python -m bench.crowd PAPERS URL`, it says `all SECONDS JSON` on its standard output whenever every
agent has come (back), in seconds of the monotonic clock. A line on its standard input begins the count of refusals
anew; the end of that is the end of the program.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from certs.handshake import server_verifier
from certs.keys import generate_key, key_fingerprint, key_from_pem, key_to_pem, signer
from certs.tls import hardened, load_pair
from certs.verify import TrustBundle, load_chain
from daemon.log import configure
from daemon.metrics import AgentMetrics
from daemon.supervisor import Supervisor
from daemon.wirefault import wire_fault
from protocol.aio.dial import FEATURES
from protocol.aio.proxydial import DialTarget
from protocol.aio.stream import IncomingStream
from protocol.aio.tlspump import TlsServerPump
from protocol.constants import CONTROL_SERVICE, Code
from protocol.flow import Budget, Limits
from protocol.handshake import REFUSED_RESUME, AgentHandshake
from tower_agent.supervisor import LinkParts, LinkSupervisor
from tower_agent.wayout import WayOut
from tower_server.admin.services import Services
from tower_server.records import Agent

GIBIBYTE = 1024**3
TELL_EVERY = 5.0  # seconds
RAMP = 40.0  # agents a second, at the first start only
NOT_THERE = frozenset({"TWR201", "TWR210", "TWR211"})  # no server, or the end of the tunnel: nobody was refused
LOST = frozenset(wire_fault(code, "TWR201") for code in REFUSED_RESUME)  # a tunnel, for which the next comes at once
READY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


@dataclass(frozen=True, slots=True)
class Papers:
    """What one agent has after its enrolment."""

    cluster: str
    agent: str
    key: str = field(repr=False)
    chain: str = field(repr=False)
    serving_chain: str = field(repr=False)
    trust: str = field(repr=False)


async def enlist(services: Services, *, clusters: int, replicas: int, name: str = "storm") -> list[Papers]:
    """Adds clusters to a running server and enrols agents in each, past the tokens."""
    made: list[Papers] = []
    for number in range(clusters):
        cluster = await services.clusters.create(f"{name}-{number}", expected_tunnels=replicas)
        for _ in range(replicas):
            key = generate_key()
            agent = key_fingerprint(key.public_key())[:12]
            papers = services.agents.issue(cluster, agent, key=key.public_key(), serving_key=key.public_key())
            await services.agents.enrol(
                Agent(
                    name=agent,
                    cluster=cluster.name,
                    uid=cluster.uid,
                    key=key_fingerprint(key.public_key()),
                    created=time.time(),
                    token="",
                    identity_expires=papers.identity_expires,
                    serving_expires=papers.serving_expires,
                    root=papers.root,
                )
            )
            made.append(
                Papers(
                    cluster.name,
                    agent,
                    key_to_pem(key).decode(),
                    papers.chain,
                    papers.serving_chain,
                    services.authority.bundle.to_pem().decode(),
                )
            )
    return made


@dataclass(slots=True)
class Refusals:
    """Failed attempts on a server that was there, by code; those of an admission that told nobody when to come back."""

    with_retry_after: Counter[str] = field(default_factory=Counter)
    without: Counter[str] = field(default_factory=Counter)
    last: str = ""
    unanswered: int = 0  # attempts that nobody took, since the port took no more just then


class Crowd:
    """Its agents. `start`, then `close`."""

    def __init__(self, papers: Sequence[Papers], url: str, *, changed: Callable[[], None] = lambda: None) -> None:
        self._changed = changed
        self._metrics = AgentMetrics(version="storm")
        self._tasks = Supervisor(on_failure=lambda _name, error: self.failures.append(error))
        self._budget = Budget(GIBIBYTE)
        self._bundle = TrustBundle.from_pem(papers[0].trust.encode())
        self._target = WayOut(proxy_env=False).tunnel(url, self._bundle)
        self.failures: list[BaseException] = []
        self.refusals = Refusals()
        self.up: set[LinkSupervisor] = set()
        self.links = [self._link(each) for each in papers]

    @property
    def all_back(self) -> bool:
        return len(self.up) == len(self.links)

    def start(self, *, rate: float | None = None) -> None:
        """Begin to dial, all at once or `rate` a second."""
        for number, link in enumerate(self.links):
            self._tasks.start(self._run(link, number / rate if rate else 0.0), name=f"storm-{number}")

    async def close(self) -> None:
        for link in self.links:
            link.close(Code.SHUTDOWN, "the storm is over")
        await asyncio.sleep(0)
        await self._tasks.close()

    async def _run(self, link: LinkSupervisor, after: float) -> None:
        await asyncio.sleep(after)
        await link.run()

    def _link(self, papers: Papers) -> LinkSupervisor:
        key = key_from_pem(papers.key.encode(), what="an agent of the storm")
        chain = load_chain(papers.chain.encode())
        verify = server_verifier(self._bundle, time.time)
        instance = f"{papers.agent}-1"
        link: LinkSupervisor

        def handshake() -> AgentHandshake:
            return AgentHandshake(
                cluster=papers.cluster,
                instance=instance,
                chain=chain,
                sign=signer(key),
                verify=verify,
                nonce=secrets.token_bytes(32),
                features=FEATURES,
                software="storm",
            )

        parts = LinkParts(
            host="storm",
            target=self._dial_target,
            handshake=handshake,
            ends_at_tower=lambda _chain: True,
            on_stream=_Member(papers).on_stream,
            instance=instance,
            budget=self._budget,
            limits=Limits(),
            changed=lambda: self._heard(link),
            welcomed=lambda: None,
            leaving=lambda _tunnel: None,
        )
        link = LinkSupervisor(parts, metrics=self._metrics, tasks=self._tasks)
        return link

    def _dial_target(self) -> DialTarget:
        return self._target

    def _heard(self, link: LinkSupervisor) -> None:
        state = link.state
        if state.connected:
            self.up.add(link)
        else:
            self.up.discard(link)
            self._count(link)
        self._changed()

    def _count(self, link: LinkSupervisor) -> None:
        fault = link.state.fault
        if fault is None or fault.code in NOT_THERE | LOST:
            self.refusals.unanswered += fault is not None and "no answer within" in fault.message
            return
        if fault.retry_after:
            self.refusals.with_retry_after[fault.code] += 1
        else:
            self.refusals.without[fault.code] += 1
            self.refusals.last = fault.message


class _Member:
    """What stands behind one agent."""

    def __init__(self, papers: Papers) -> None:
        self._papers = papers
        self._context: ssl.SSLContext | None = None

    def on_stream(self, stream: IncomingStream) -> None:
        if stream.service == CONTROL_SERVICE:
            stream.accept(_Quiet())
        elif stream.service == "kubernetes":
            if self._context is None:
                self._context = hardened(ssl.PROTOCOL_TLS_SERVER)
                load_pair(
                    self._context,
                    chain_pem=self._papers.serving_chain.encode(),
                    key_pem=self._papers.key.encode(),
                )
            stream.accept(TlsServerPump(self._context, _Ready))
        else:
            stream.refuse(Code.UNKNOWN_SERVICE, "an agent of the storm serves nothing else")


class _Quiet(asyncio.Protocol):
    """Takes the control stream and says nothing."""

    def eof_received(self) -> bool:
        return False


class _Ready(asyncio.Protocol):
    """Answers whatever is asked by `ok`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._head = b""

    def data_received(self, data: bytes) -> None:
        self._head += bytes(data)
        if b"\r\n\r\n" in self._head:
            self._head = b""
            self._transport.write(READY)

    def eof_received(self) -> bool:
        return False


async def main(papers: Path, url: str) -> None:
    loop = asyncio.get_running_loop()
    all_back = asyncio.Event()

    def changed() -> None:
        if not crowd.all_back:
            all_back.clear()
        elif not all_back.is_set():
            all_back.set()
            refusals = crowd.refusals
            seen = {
                "with_retry_after": refusals.with_retry_after,
                "without": refusals.without,
                "last": refusals.last,
                "unanswered": refusals.unanswered,
                "failures": [repr(each) for each in crowd.failures],
            }
            print("all", loop.time(), json.dumps(seen), flush=True)

    crowd = Crowd([Papers(**each) for each in json.loads(papers.read_text())], url, changed=changed)
    crowd.start(rate=RAMP)
    telling = asyncio.create_task(tell(crowd))
    try:
        while await asyncio.to_thread(sys.stdin.readline):
            crowd.refusals = Refusals()
    finally:
        telling.cancel()
        await crowd.close()


async def tell(crowd: Crowd) -> None:
    """Progress, on stderr, until cancelled."""
    while True:
        await asyncio.sleep(TELL_EVERY)
        if not crowd.all_back:
            seen = crowd.refusals
            print(
                f"storm: {len(crowd.up)} of {len(crowd.links)} are there; refused with retry-after"
                f" {dict(seen.with_retry_after)}, without {dict(seen.without)} {seen.last}",
                file=sys.stderr,
                flush=True,
            )


if __name__ == "__main__":
    configure(level="error")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(Path(sys.argv[1]), sys.argv[2]))
