"""A tunnel outlives its link, with real processes: through many cuts nothing is lost and nothing comes twice; where no
link comes back in time, every stream ends at once and says why."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.processes import wait_until
from tests.lab.world import TowerWorld
from tests.loopback.callers import Caller, logs, metrics, ticks_until_end, tunnels, watching
from tests.loopback.member import BackendMember
from tests.loopback.relay import MOVED, Network

NAME = "cut-often"
WINDOW = 6.0
CONSTANTS = {"PING_INTERVAL": 0.5, "DEAD_AFTER": 2.0, "RESUME_WINDOW": WINDOW}
CUTS = 20
BULK = 96 * 1024 * 1024
PIECE = bytes(range(256)) * 1024
PATIENCE = 30.0

pytestmark = [pytest.mark.timeout(150), pytest.mark.slow]


@pytest.fixture(scope="module")
def tower(place: Path, net: tuple[Network, int], member: BackendMember) -> Iterator[TowerWorld]:
    relay, port = net
    settings = {"public_url": f"wss://127.0.0.1:{relay.port}", "callers": {"address": "127.0.0.1"}}
    with TowerWorld(place / "w", settings=settings, constants=CONSTANTS, tunnel_port=port) as world:
        world.join(NAME, member, credential=member.by_token)
        yield world


def resumed(tower: TowerWorld, result: str = "ok") -> float:
    return metrics(tower).get(f'tower_tunnel_resumes_total{{member_cluster="{NAME}",result="{result}"}}', 0.0)


async def echo(caller: Caller) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the backend's protocol that says everything back."""
    with caller.connect() as known:  # its TLS and its credential, for a loop
        context, request = known._socket.context, known.request("GET", "/echo", "Connection: Upgrade", "Upgrade: echo")
    host, port = caller.address
    name = caller.cluster["tls-server-name"]
    reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=name)
    writer.write(request)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    return reader, writer


class Transfer:
    """Bulk that goes to the member and comes back, and what is known of it so far."""

    def __init__(self) -> None:
        self.sent, self.got = hashlib.sha256(), hashlib.sha256()
        self.received = 0

    async def send(self, writer: asyncio.StreamWriter) -> None:
        for number in range(BULK // len(PIECE)):
            piece = number.to_bytes(8, "big") + PIECE[8:]
            self.sent.update(piece)
            writer.write(piece)
            await writer.drain()

    async def receive(self, reader: asyncio.StreamReader) -> None:
        while self.received < BULK:
            data = await reader.read(262_144)
            assert data, "the transfer was cut"
            self.got.update(data)
            self.received += len(data)


async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes) -> None:
    """One line there and back."""
    writer.write(line)
    async with asyncio.timeout(PATIENCE):
        assert await reader.readexactly(len(line)) == line


async def hang_up(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def until(condition, what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what, PATIENCE)


def test_twenty_cuts_lose_nothing_and_repeat_nothing(tower: TowerWorld, net: tuple[Network, int]) -> None:
    caller, relay = Caller(tower.kubeconfig(NAME)), net[0]
    before = tunnels(tower, NAME)

    async def through_cuts() -> Transfer:
        bulk, small, transfer = await echo(caller), await echo(caller), Transfer()
        async with asyncio.TaskGroup() as group:
            group.create_task(transfer.send(bulk[1]))
            group.create_task(transfer.receive(bulk[0]))
            for cut in range(CUTS):
                await until(lambda cut=cut: transfer.received >= BULK * cut // (CUTS + 1), "the transfer goes on")
                small[1].write(b"in the air %d " % cut)
                await asyncio.to_thread(relay.do, "cut")
                await until(lambda cut=cut: resumed(tower) > cut, f"resume {cut + 1}")
                expected = b"in the air %d " % cut
                async with asyncio.timeout(PATIENCE):
                    assert await small[0].readexactly(len(expected)) == expected
                await say(*small, b"line %d\n" % cut)
        await hang_up(bulk[1], small[1])
        return transfer

    with watching(caller) as goes_on:
        transfer = asyncio.run(through_cuts())
        goes_on()
    assert transfer.received == BULK
    assert transfer.got.digest() == transfer.sent.digest()
    assert tunnels(tower, NAME) == before, "it is one and the same tunnel"
    events = [entry["event"] for entry in tower.cluster(NAME)["history"]]
    assert set(events) == {"detached", "resumed"}, "the newest entries"
    assert caller.ask("/after").status == 200


@pytest.mark.parametrize("fault", ["close", "move"])
def test_a_proxy_that_closes_in_order_and_another_address_are_a_pause_too(
    tower: TowerWorld, net: tuple[Network, int], fault: str
) -> None:
    caller, relay, lost = Caller(tower.kubeconfig(NAME)), net[0], b"in the air"
    before, count = tunnels(tower, NAME), resumed(tower)

    async def through() -> None:
        reader, writer = await echo(caller)
        await say(reader, writer, b"before")
        writer.write(lost)
        await asyncio.to_thread(relay.do, fault)
        await until(lambda: resumed(tower) > count, "the tunnel taken up again")
        async with asyncio.timeout(PATIENCE):
            assert await reader.readexactly(len(lost)) == lost
        await say(reader, writer, b"after")
        await hang_up(writer)

    with watching(caller) as goes_on:
        asyncio.run(through())
        goes_on()
    assert tunnels(tower, NAME) == before, "it is one and the same tunnel"
    remote = tower.call("GET", f"/v1/tunnels?cluster={NAME}")[1]["items"][0]["remote"]
    assert remote.startswith(MOVED if fault == "move" else "127.0.0.1:")


def test_after_the_window_every_stream_ends_and_the_log_says_why(tower: TowerWorld, net: tuple[Network, int]) -> None:
    caller, relay = Caller(tower.kubeconfig(NAME)), net[0]
    agent = tower.members[NAME].agent
    tower.until_state(NAME, "Connected", deadline=PATIENCE)

    async def ended(reader: asyncio.StreamReader) -> None:
        with pytest.raises((ConnectionError, ssl.SSLError, asyncio.IncompleteReadError)):
            async with asyncio.timeout(WINDOW + PATIENCE):
                await reader.readexactly(1)

    async def beyond() -> None:
        streams = [await echo(caller) for _ in range(3)]
        for reader, writer in streams:
            await say(reader, writer, b"alive")
        await asyncio.to_thread(relay.do, "shut")
        await until(lambda: tower.call("GET", f"/v1/tunnels?cluster={NAME}")[1]["items"][0]["state"] == "Detached",
                    "the tunnel is detached")  # fmt: skip
        await asyncio.gather(*(ended(reader) for reader, _ in streams))
        await hang_up(*(writer for _, writer in streams))

    why = f"no new link within {WINDOW:g} s"
    try:
        with logs(tower.server.log, "connection", "cut: ", why), logs(agent.log, "tunnel-down", why):
            asyncio.run(beyond())
        found = tower.cluster(NAME)
        assert found["history"][0]["event"] == "closed"
        assert why in found["history"][0]["text"]
        assert resumed(tower, "expired") == 1
    finally:
        relay.do("open")
    tower.until_state(NAME, "Connected", deadline=PATIENCE)
    assert caller.ask("/back").status == 200


def test_streams_of_a_killed_agent_end_once_another_process_has_taken_its_place(tower: TowerWorld) -> None:
    caller = Caller(tower.kubeconfig(NAME))
    tower.until_state(NAME, "Connected", deadline=PATIENCE)
    with caller.connect() as running, logs(tower.server.log, "connection", "cut: its agent's process was started anew"):
        running.send(running.request("GET", "/watch"))
        assert running.line().startswith(b"HTTP/1.1 200")
        tower.members[NAME].agent.send(signal.SIGKILL)
        tower.restart_agent(NAME)
        ticks_until_end(running)
    tower.until_state(NAME, "Connected", deadline=PATIENCE)
    assert caller.ask("/again").status == 200
