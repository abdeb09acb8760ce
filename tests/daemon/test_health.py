from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from daemon import health as module
from daemon.faults import TowerError
from daemon.health import Health
from daemon.units import split_address

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def on_uvloop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """The loop that processes run on: its transports are not those of asyncio."""

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(asyncio.wait_for(test(), 20))

    run.__name__ = test.__name__
    return run


@asynccontextmanager
async def served(health: Health) -> AsyncIterator[Callable[[bytes], Awaitable[tuple[int, dict[str, str], bytes]]]]:
    address = await health.start("127.0.0.1:0")
    host, port = split_address(address)

    async def ask(request: bytes) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            length = 0 if request.startswith(b"HEAD") else int(headers["content-length"])
            body = await reader.readexactly(length)
            if headers["connection"] == "close":
                assert await reader.read() == b""
            return int(head[0].split()[1]), headers, body
        finally:
            writer.close()
            await writer.wait_closed()

    try:
        yield ask
    finally:
        await health.stop()


@asynccontextmanager
async def connected(health: Health, *, times: int = 1) -> AsyncIterator[list[Pair]]:
    host, port = split_address(await health.start("127.0.0.1:0"))
    pairs = [await asyncio.open_connection(host, port) for _ in range(times)]
    try:
        yield pairs
    finally:
        for _, writer in pairs:
            writer.close()
        await health.stop()


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@on_uvloop
async def test_the_three_answers() -> None:
    async with served(Health(metrics=lambda: b"tower_build_info 1\n")) as ask:
        assert (await ask(get("/healthz")))[::2] == (200, b"ok\n")
        status, headers, body = await ask(get("/readyz?verbose"))
        assert (status, json.loads(body)) == (200, {"ready": True, "reasons": {}})
        assert headers["content-type"] == "application/json"
        status, headers, body = await ask(get("/metrics"))
        assert (status, body) == (200, b"tower_build_info 1\n")
        assert headers["content-type"].startswith("text/plain; version=")


def test_not_ready_names_every_reason_and_liveness_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK_DEADLINE", 0.2)

    @on_uvloop
    async def run() -> None:
        health = Health()

        async def slow() -> str | None:
            await asyncio.sleep(60)
            return None

        def broken() -> str | None:
            raise RuntimeError("secret detail")

        health.check("tunnel", lambda: "no tunnel to host a")
        health.check("store", lambda: None)
        health.check("broken", broken)
        health.check("slow", slow)
        health.check("slow too", slow)
        async with served(health) as ask:
            status, _, body = await ask(get("/readyz"))
            assert status == 503
            assert json.loads(body)["reasons"] == {
                "tunnel": "no tunnel to host a",
                "broken": "the check itself failed: RuntimeError",
                "slow": "no answer within 0.2s",
                "slow too": "no answer within 0.2s",
            }
            assert (await ask(get("/healthz")))[0] == 200
            for name in ("tunnel", "broken", "slow", "slow too"):
                health.check(name, lambda: None)
            assert (await ask(get("/readyz")))[0] == 200
            health.stopping = True
            assert json.loads((await ask(get("/readyz")))[2])["reasons"] == {"stopping": "the process is stopping"}

    run()


@on_uvloop
async def test_head_sends_the_length_but_no_body() -> None:
    async with served(Health()) as ask:
        status, headers, body = await ask(get("/healthz", "HEAD"))
        assert (status, headers["content-length"], body) == (200, "3", b"")


@on_uvloop
async def test_what_is_not_offered_is_refused() -> None:
    async with served(Health()) as ask:
        assert (await ask(get("/metrics")))[0] == 404
        assert (await ask(get("/../etc/passwd")))[0] == 404
        status, headers, _ = await ask(b"POST /readyz HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        assert (status, headers["allow"]) == (405, "get, head")


@on_uvloop
async def test_bad_input_is_refused_and_others_are_served() -> None:
    async with served(Health()) as ask:
        for garbage in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        ):
            assert (await ask(garbage))[0] == 400
        big = b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n"
        assert (await ask(big))[0] == 431
        assert (await ask(get("/healthz")))[0] == 200


@on_uvloop
async def test_a_connection_is_kept_for_the_next_request_and_closed_when_asked() -> None:
    async with connected(Health()) as [(reader, writer)]:
        for _ in range(3):
            writer.write(get("/healthz"))
            assert b"keep-alive" in await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(3)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b"\r\n\r\nok\n")


@on_uvloop
async def test_pipelined_requests_end_the_connection_after_the_first_answer() -> None:
    async with connected(Health()) as [(reader, writer)]:
        writer.write(get("/healthz") * 3)
        answer = await reader.read()
        assert answer.count(b"HTTP/1.1 200") == 1
        assert b"Connection: close" in answer


def test_a_silent_peer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEAD_DEADLINE", 0.1)

    @on_uvloop
    async def run() -> None:
        async with connected(Health()) as [(reader, writer)]:
            writer.write(b"GET /healthz HT")
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await reader.readexactly(1)

    run()


def test_who_sits_on_all_places_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 2)

    @on_uvloop
    async def run() -> None:
        async with connected(Health(), times=2) as (scraper, sitter):
            scraper[1].write(get("/healthz"))
            assert (await scraper[0].readuntil(b"ok\n")).startswith(b"HTTP/1.1 200")
            kubelet = await asyncio.open_connection(*scraper[1].get_extra_info("peername"))
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await sitter[0].readexactly(1)
            for reader, writer in (kubelet, scraper):
                writer.write(get("/healthz"))
                assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200")
            kubelet[1].close()

    run()


def test_more_requests_than_allowed_at_once_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 2)

    @on_uvloop
    async def run() -> None:
        asked, answer = asyncio.Event(), asyncio.Event()

        async def slow() -> None:
            asked.set()
            await answer.wait()

        health = Health()
        health.check("slow", slow)
        async with connected(health, times=2) as pairs:
            for _, writer in pairs:
                asked.clear()
                writer.write(get("/readyz"))
                await asked.wait()
            reader, writer = await asyncio.open_connection(*pairs[0][1].get_extra_info("peername"))
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await reader.readexactly(1)
            writer.close()
            answer.set()
            for reader, _ in pairs:
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")

    run()


@on_uvloop
async def test_a_taken_address_is_named_with_a_mend() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(TowerError) as caught:
            await Health().start(address)
    assert caught.value.code == "TWR103"
    assert f"{address} for health and metrics cannot be listened on: " in caught.value.message
    assert "Address already in use" in caught.value.message
    assert "ss -ltnp" in caught.value.mend
    assert "another `health_address`" in caught.value.mend


@on_uvloop
async def test_an_inherited_socket_is_used() -> None:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    port = sock.getsockname()[1]
    health = Health()
    assert await health.start("ignored:1", sock=sock) == f"127.0.0.1:{port}"
    await health.stop()


@on_uvloop
async def test_metrics_that_take_long_keep_nobody_waiting() -> None:
    may_end = threading.Event()

    def render() -> bytes:
        assert may_end.wait(15), "the loop waited for the metrics"
        return b"done\n"

    async with served(Health(metrics=render)) as ask:
        metrics = asyncio.create_task(ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"))
        await asyncio.sleep(0)
        assert (await ask(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200
        may_end.set()
        assert (await metrics)[2] == b"done\n"


@on_uvloop
async def test_who_asks_and_does_not_read_is_answered_no_further_until_it_reads() -> None:
    """Or each connection would have the process keep as many answers as it can ask for."""
    asked, size = 0, 32 * 1024 * 1024  # more than both sockets hold

    def render() -> bytes:
        nonlocal asked
        asked += 1
        return bytes(size)

    async with connected(Health(metrics=render), times=2) as [(reader, writer), (other, beside)]:
        for _ in range(3):
            writer.write(get("/metrics"))
            for _ in range(10):  # by then the process would have seen what came before
                beside.write(get("/healthz"))
                await other.readuntil(b"ok\n")
        assert asked == 1
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(size)
        await reader.readuntil(b"\r\n\r\n")
        assert asked == 2


@on_uvloop
async def test_metrics_are_made_once_for_all_who_wait_for_them() -> None:
    """Whoever reaches the port could else keep a processor busy with them, which is the tunnels' too."""
    made, may_end = 0, threading.Event()

    def render() -> bytes:
        nonlocal made
        made += 1
        text = b"made %d\n" % made
        assert may_end.wait(15)
        return text

    async with connected(Health(metrics=render), times=12) as [(first, writer), *others, (other, beside)]:
        writer.write(get("/metrics"))
        async with asyncio.timeout(15):
            while not made:
                await asyncio.sleep(0.01)
        for _, each in others:
            each.write(get("/metrics"))
        for _ in range(10):  # by then the process has seen what came before
            beside.write(get("/healthz"))
            await other.readuntil(b"ok\n")
        may_end.set()
        assert (await first.readuntil(b"\r\n\r\nmade 1\n")).startswith(b"HTTP/1.1 200 ")
        for reader, _ in others:  # none of them is told what was so before it asked
            assert (await reader.readuntil(b"\r\n\r\nmade 2\n")).startswith(b"HTTP/1.1 200 ")


@on_uvloop
async def test_metrics_that_cannot_be_made_end_neither_the_port_nor_the_next_attempt() -> None:
    attempts = 0

    def render() -> bytes:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ValueError("a collector failed")
        return b"done\n"

    async with served(Health(metrics=render)) as ask:
        assert (await ask(get("/metrics")))[0] == 500
        assert (await ask(get("/metrics")))[2] == b"done\n"
