"""What strangers and broken agents may do to the dialect's port: a clear refusal, nothing left, others untouched."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from websockets.speedups import apply_mask

from protocol.aio.ssh import MAX_REQUEST_BYTES, AgentConnection
from protocol.aio.sshoptions import agent_options
from protocol.defaults import LEGACY_REGISTRATION
from tests.protocol.aio.sshpeers import Collect, channel_limits
from tests.tower_server.legacy.goagent import TOKEN, UPGRADE, GoAgent, Refused
from tests.tower_server.legacy.kit import CLUSTER, Host, host
from tests.waiting import until

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def tower(tmp_path: Path) -> AsyncIterator[Host]:
    async with host(tmp_path) as found:
        yield found


def places(tower: Host) -> int:
    return len(tower.running.server._parts.legacy._port._waiting)


async def http(tower: Host, request: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", tower.port)
    writer.write(request.encode())
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    return answer.decode("latin-1")


# ---- HTTP and WebSocket ---------------------------------------------------------------------------------------------


async def test_beside_agents_the_port_answers_as_go_towers_and_serves_nothing_native(tower: Host) -> None:
    assert (await http(tower, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n")).endswith("\r\n\r\nOK\n")
    version = tower.running.services.version
    assert (await http(tower, "GET /version HTTP/1.1\r\nHost: x\r\n\r\n")).endswith(f"\r\n\r\n{version}")
    for target in ("/", "/v1/enrolment?token=x", "/v1/tunnel", "/healthz"):
        answer = await http(tower, f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith("HTTP/1.1 404 ")
        assert "kubesphere-v1" in answer


async def test_only_the_dialects_subprotocol_is_taken(tower: Host) -> None:
    for protocol in ("tower.v1", "kubesphere-v1, tower.v1", "kubesphere-v2", ""):
        with pytest.raises(Refused, match="404"):
            await GoAgent(tower.port).upgrade(protocol=protocol)


async def test_any_path_is_taken_and_no_subprotocol_is_echoed(tower: Host) -> None:
    for path in ("/", "/any/path?query=1"):
        agent = await tower.dialled(path=path)
        assert b"101" in agent.head
        assert b"sec-websocket-protocol" not in agent.head.lower()
        assert await agent.register(tower.config()) == ""


@pytest.mark.slow
async def test_a_browser_is_not_let_in(tower: Host) -> None:
    request = UPGRADE.format(path="/", protocol="kubesphere-v1")
    answer = await http(tower, request.replace("\r\n\r\n", "\r\nOrigin: https://evil.example\r\n\r\n"))
    assert answer.startswith("HTTP/1.1 403 ")


@pytest.mark.slow
async def test_a_storm_is_told_to_come_back_before_it_costs_a_handshake(tmp_path: Path) -> None:
    async with host(tmp_path, admission={"handshakes_per_second": 0.01, "handshake_burst": 4}) as tower:
        refused = ""
        for _ in range(6):
            agent = GoAgent(tower.port)
            try:
                await agent.upgrade()
            except Refused as error:
                refused = str(error)
            await agent.end()
        assert refused.startswith("HTTP/1.1 503 ")
        assert "Retry-After" in refused


# ---- Go's fragments -------------------------------------------------------------------------------------------------


class Fragmenting:
    """Go's client flushes a message in fragments of 1 KiB, each masked."""

    def __init__(self, link: Any, size: int) -> None:
        self._link, self._size = link, size

    def write(self, buffers: Any) -> None:
        data = b"".join(buffers)
        pieces = [data[at : at + self._size] for at in range(0, len(data), self._size)] or [b""]
        out = bytearray()
        for number, piece in enumerate(pieces):
            first = (0x80 if number == len(pieces) - 1 else 0) | (2 if number == 0 else 0)
            length = bytes((0x80 | len(piece),)) if len(piece) < 126 else struct.pack("!BH", 0xFE, len(piece))
            out += bytes((first,)) + length + b"mask" + apply_mask(piece, b"mask")
        self._link._transport.write(bytes(out))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 7, 1024])
async def test_fragments_of_any_size_are_joined(tower: Host, size: int) -> None:
    agent = GoAgent(tower.port)
    tower.agents.append(agent)
    await agent.upgrade()
    agent.link.write = Fragmenting(agent.link, size).write  # type: ignore[method-assign]
    upgraded = agent.link
    agent.upgrade = lambda **_: asyncio.sleep(0, upgraded)  # type: ignore[method-assign,assignment]
    await agent.dial()
    assert await agent.register(tower.config()) == ""
    tower.backend.answer = b"z" * (200 * size + 2000)
    await until(lambda: tower.member.tunnels)
    assert (await tower.ask("/fragments")).body == tower.backend.answer


# ---- registration ---------------------------------------------------------------------------------------------------


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"Token": "cd" * 32}, "TWR240"),
    ({"Token": ""}, "TWR240"),
    ({"Name": "edge-2"}, "TWR240"),
    ({"Name": "../edge-1"}, "TWR240"),
    ({"CAData": "AAAA"}, "CAData"),
    ({"CAData": "bm8gUEVN"}, "CAData holds no certificates as PEM"),
    ({"CertData": "bm8gUEVN"}, "CertData holds no certificates as PEM"),
    ({"KeyData": "bm8gUEVN"}, "KeyData is not an unencrypted private key"),
    ({"KeyData": None}, "one is missing"),
    ({"CertData": None, "KeyData": None}, "without a credential"),
    ({"KubernetesSvcHost": "not an address"}, "KubernetesSvcHost"),
    ({"Token": 7}, "Token"),
]


@pytest.mark.slow
async def test_a_refusal_says_why_and_closes_and_others_are_untouched(tower: Host) -> None:
    healthy = await tower.registered()
    agents = []
    for changes, said in REFUSALS:
        agent = await tower.dialled()
        assert said in await agent.register(tower.config(**changes)), "an empty text would be a success to Go"
        agents.append(agent)
    async with asyncio.timeout(30):
        for agent in agents:
            await agent.lost.wait()
    await until(lambda: places(tower) == 0)
    assert len(tower.member.tunnels) == 1
    assert not healthy.lost.is_set()
    assert (await tower.ask("/still")).status == 200


async def test_an_unknown_name_and_a_wrong_token_cannot_be_told_apart(tower: Host) -> None:
    texts = set()
    for changes in ({"Token": "cd" * 32}, {"Name": "edge-2"}):
        agent = await tower.dialled()
        texts.add(await agent.register(tower.config(**changes)))
    assert len(texts) == 1
    assert "Unauthorized agent" in texts.pop()
    history = (await tower.view())["history"]
    assert [each["event"] for each in history] == ["refused"]
    assert history[0]["code"] == "TWR240"


async def test_a_cluster_without_a_token_takes_no_agent_not_even_with_an_empty_one(tower: Host) -> None:
    await tower.running.add("edge-2")
    for token in ("", TOKEN):
        agent = await tower.dialled()
        assert "TWR240" in await agent.register(tower.config(Name="edge-2", Token=token))


async def test_broken_json_is_answered(tower: Host) -> None:
    for payload in (b"", b"{", b"[[[[", b"\x00\xff", b'"config"'):
        agent = await tower.dialled()
        assert "JSON" in await agent.register(payload)


async def test_an_oversized_config_is_answered_and_a_huge_one_ends_the_connection(tower: Host) -> None:
    agent = await tower.dialled()
    assert "at most" in await agent.register(b" " * (LEGACY_REGISTRATION + 1))
    agent = await tower.dialled()
    with pytest.raises(ConnectionError):
        await agent.register(b" " * (MAX_REQUEST_BYTES + 1))


async def test_config_twice_ends_the_tunnel(tower: Host) -> None:
    agent = await tower.registered()
    assert "already" in await agent.register(tower.config())
    await until(lambda: not tower.member.tunnels)
    assert tower.member.history[0].code == "PROTOCOL"


@pytest.mark.slow  # a second to read the refusal, each
@pytest.mark.parametrize(
    ("second", "said"), [("config", b"config was sent already"), ("ping", b"expecting config request")]
)
async def test_whoever_asks_again_before_the_answer_is_refused_and_registered_by_neither(
    tower: Host, second: str, said: bytes
) -> None:
    agent = await tower.dialled()
    payload = json.dumps(tower.config()).encode()
    answers = [agent.wire.ask("config", payload), agent.wire.ask(second, payload)]
    async with asyncio.timeout(30):
        assert await asyncio.gather(*answers) == [(False, said), (False, said)]
        await agent.lost.wait()
    await until(lambda: places(tower) == 0)
    assert tower.member.tunnels == []


@pytest.mark.slow
async def test_another_request_first_is_refused_as_go_does(tower: Host) -> None:
    agent = await tower.dialled()
    assert await agent.wire.request("ping") == (False, b"expecting config request")
    async with asyncio.timeout(30):
        await agent.lost.wait()


@pytest.mark.slow
async def test_a_config_that_does_not_come_ends_at_its_deadline(tower: Host) -> None:
    agent = GoAgent(tower.port)
    tower.agents.append(agent)
    upgraded = await agent.upgrade()
    tower.running.server._parts.legacy._port.deadline = 0.3  # of what comes next: SSH may take as long as it does
    agent.upgrade = lambda **_: asyncio.sleep(0, upgraded)  # type: ignore[method-assign,assignment]
    await agent.dial()
    async with asyncio.timeout(30):
        await agent.lost.wait()
    assert "no config within 0.3 s" in agent.reason
    await until(lambda: places(tower) == 0)


@pytest.mark.slow
async def test_a_config_that_cannot_be_decided_upon_in_time_is_told_so(tower: Host) -> None:
    """As with a store that does not answer: the agent must not hear that it sent nothing."""
    port = tower.running.server._parts.legacy._port

    async def slow(payload: bytes, remote: str) -> Any:
        await asyncio.get_running_loop().create_future()

    agent = GoAgent(tower.port)
    tower.agents.append(agent)
    upgraded = await agent.upgrade()
    port.deadline, port.register = 1.0, slow
    agent.upgrade = lambda **_: asyncio.sleep(0, upgraded)  # type: ignore[method-assign,assignment]
    await agent.dial()
    assert await agent.register(tower.config()) == "no decision on the config within 1 s"
    async with asyncio.timeout(30):
        await agent.lost.wait()
    assert "no decision on the config within 1 s" in agent.reason
    await until(lambda: places(tower) == 0 and "legacy-register" not in [task.get_name() for task in port._tasks])


@pytest.mark.slow
async def test_ssh_that_does_not_begin_ends_at_its_deadline(tower: Host) -> None:
    tower.running.server._parts.legacy._port.deadline = 0.3
    silent = GoAgent(tower.port)
    await silent.upgrade()
    reader, writer = await asyncio.open_connection("127.0.0.1", tower.port)
    async with asyncio.timeout(30):
        await reader.read()
    writer.close()
    await until(lambda: places(tower) == 0)
    await silent.end()


# ---- SSH ------------------------------------------------------------------------------------------------------------


async def test_weak_key_exchanges_only_are_refused_and_others_go_on(tower: Host) -> None:
    healthy = await tower.registered()
    weak = GoAgent(tower.port)
    await weak.upgrade()
    options = await agent_options(kex_algs=("diffie-hellman-group1-sha1",))
    weak.speak(AgentConnection(weak, options, channel_limits()))
    async with asyncio.timeout(30):
        await weak.lost.wait()
    assert "key exchange" in weak.reason
    assert (await tower.ask("/still")).status == 200
    assert not healthy.lost.is_set()
    await weak.end()


@pytest.mark.slow
@pytest.mark.parametrize("line", [b"SSH-" + b"v" * 251 + b"\r\n", b"SSH-" + b"v" * 300 + b"\r\n", b"v" * 100_000])
async def test_version_lines(tower: Host, line: bytes) -> None:
    agent = GoAgent(tower.port)
    link = await agent.upgrade()
    transport, rest = agent._upgraded
    heard = Collect()
    transport.set_protocol(heard)
    link._transport = transport
    transport.resume_reading()
    link.write([line])
    if len(line) <= 257:
        await until(lambda: b"curve25519" in rest + heard.data)
    else:
        await until(lambda: heard.eof.is_set() or heard.lost.done())  # a reset where not all of it was read
        await until(lambda: places(tower) == 0)
    transport.abort()


@pytest.mark.slow
async def test_channels_that_an_agent_opens_are_refused_and_dial_nobody(tower: Host) -> None:
    agent = await tower.registered()
    before = tower.backend.connections
    end = Collect()
    agent.wire.open(tower.backend.raw_address, end)
    async with asyncio.timeout(30):
        error = await end.lost
    assert "takes no channels" in str(error)
    for _ in range(2000):
        if agent.lost.is_set():
            break
        with contextlib.suppress(ConnectionError):
            agent.wire.open(tower.backend.raw_address, Collect())
        await asyncio.sleep(0)
    await until(lambda: not tower.member.tunnels)
    assert tower.backend.connections <= before + 5  # for the probe, the binding and three facts


@pytest.mark.slow
async def test_a_peer_that_stops_reading_stops_nobody_else(tower: Host) -> None:
    stuck, well = await tower.registered(), await tower.registered()
    stuck.link._transport.pause_reading()  # type: ignore[union-attr]
    for _ in range(20):
        answer = await tower.ask("/either", timeout=30)
        assert answer.status in (200, 503, 504)
    assert not well.lost.is_set()


# ---- breaking off at every step -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("step", ["tcp", "head", "upgraded", "version", "ready", "config", "registered", "stream"])
async def test_a_disconnect_at_every_step_leaves_nothing(tower: Host, step: str) -> None:
    parts = tower.running.server._parts
    budget = parts.legacy._budget
    agent = GoAgent(tower.port)
    _, writer = await asyncio.open_connection("127.0.0.1", tower.port)
    if step == "head":
        writer.write(b"GET / HTTP/1.1\r\nUpgr")
    elif step != "tcp":
        writer.close()
        if step in ("upgraded", "version"):
            await agent.upgrade()
            if step == "version":
                transport, _ = agent._upgraded
                agent.link._transport = transport
                agent.link.write([b"SSH-2.0-Go\r\n"])
        else:
            agent = await tower.dialled()
        if step == "config":
            agent.wire.ask("config", json.dumps(tower.config()).encode())
        elif step in ("registered", "stream"):
            assert await agent.register(tower.config()) == ""
            await until(lambda: tower.member.tunnels)
        if step == "stream":
            agent.serve = False
            asking = asyncio.ensure_future(tower.ask("/hanging", timeout=20))
            await until(lambda: len(agent.targets) > 0)
            agent.link.abort("broken off")
            with contextlib.suppress(ConnectionError):  # cut, where its TLS was not done yet
                answer = await asking  # its own way to the apiserver may be found broken first
                code = {503: "TWR201", 502: "TWR301"}[answer.status]
                assert code in answer.json()["message"]
    await asyncio.sleep(0.02)
    writer.transport.abort()
    await agent.end()
    await until(lambda: places(tower) == 0 and not tower.member.tunnels)
    await until(lambda: budget.used == 0)
    await tower.registered()
    assert (await tower.ask("/after")).status == 200


@pytest.mark.slow
async def test_a_registration_is_not_slower_for_those_that_wait_silently(tower: Host) -> None:
    silent = [await asyncio.open_connection("127.0.0.1", tower.port) for _ in range(50)]
    began = time.monotonic()
    await tower.registered()
    assert time.monotonic() - began < 10
    assert CLUSTER in tower.running.services.registry.members
    for _, writer in silent:
        writer.transport.abort()
