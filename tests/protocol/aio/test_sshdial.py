from __future__ import annotations

import asyncio
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.aio import sshdial
from protocol.aio.hops import DialError
from protocol.aio.proxydial import DialTarget
from protocol.aio.sshchannel import Channel
from protocol.aio.sshdial import HostSession, RegistrationRefused, dial_host
from tests.lab.pki import ClusterCA
from tests.protocol.aio.sshhost import SshHost, ssh_host
from tests.protocol.aio.sshpeers import channel_limits

pytestmark = pytest.mark.asyncio


def nothing(channel: Channel, target: str) -> None:
    raise AssertionError(f"a channel to {target}")


async def dialled(host: SshHost, **more: float) -> HostSession:
    return await dial_host(host.target, limits=channel_limits(), on_channel=nothing, **more)  # type: ignore[arg-type]


async def test_the_first_request_is_the_registration_as_it_was_given_and_pings_follow() -> None:
    async with ssh_host() as host:
        session = await dialled(host)
        await session.register(b'{"Name": "edge"}')
        assert await session.ping() >= 0
        assert host.owners[0].requests == [("config", b'{"Name": "edge"}'), ("ping", b"")]
        assert session.version == "SSH-kubesphere-v1-server"
        assert host.sessions[0].get_extra_info("peer_version") == "SSH-kubesphere-v1-client"
        assert session.silent_for < 5
        session.close("enough")
        session.close("twice")
        assert await session.wait_closed() == "enough"
        async with asyncio.timeout(20):
            await host.owners[0].lost.wait()


async def test_the_hosts_own_requests_are_answered() -> None:
    async with ssh_host() as host:
        session = await dialled(host)
        assert await host.sessions[0].request("ping") == (True, b"")
        assert (await host.sessions[0].request("keepalive@openssh.com"))[0] is False
        session.close("enough")


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((False, b"Unauthorized agent"), "Unauthorized agent"),
        ((True, b"a text is a refusal to Go agents"), "a text is a refusal to Go agents"),
        ((False, b""), "no reason was given"),
        ((False, b"with a \x1b[31mcolour\x00"), "colour"),
    ],
)
async def test_a_refusal_carries_the_hosts_words(reply: tuple[bool, bytes], said: str) -> None:
    async with ssh_host() as host:
        host.answer = lambda name, payload: reply
        session = await dialled(host)
        with pytest.raises(RegistrationRefused) as caught:
            await session.register(b"{}")
        session.close("refused")
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.slow
async def test_a_host_that_never_answers_a_registration_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sshdial, "REGISTRATION_DEADLINE", 0.2)
    async with ssh_host() as host:
        host.answer = lambda name, payload: None
        session = await dialled(host)
        with pytest.raises(DialError, match=r"handshake: .* did not answer the registration within 0.2 s"):
            await session.register(b"{}")
        session.close("enough")


@pytest.mark.slow
async def test_a_host_that_answers_no_ping_is_dead() -> None:
    async with ssh_host() as host:
        session = await dialled(host)
        host.answer = lambda name, payload: None
        with pytest.raises(ConnectionError, match="no answer to a ping"):
            await session.ping(0.2)
        session.close("enough")


async def test_a_host_that_hangs_up_ends_whatever_waits() -> None:
    async with ssh_host() as host:
        host.answer = lambda name, payload: None
        session = await dialled(host)
        waiting = asyncio.create_task(session.register(b"{}"))
        await host.session(1)
        host.links[0].abort("cut")
        with pytest.raises(DialError, match="ended the session instead of answering the registration"):
            await waiting
        assert "the peer closed" in await session.wait_closed() or "broke" in await session.wait_closed()
        with pytest.raises(ConnectionError):
            await session.ping()


@pytest.mark.slow
async def test_a_host_without_ssh_behind_its_websocket_is_given_up() -> None:
    async with ssh_host() as host:
        host.silent = True
        with pytest.raises(DialError, match=r"handshake: .* did not complete the SSH handshake within 0.3 s"):
            await dialled(host, deadline=0.3)


async def test_over_tls_the_hosts_chain_is_verified_before_anything_is_said(tmp_path: Path) -> None:
    ca, other = ClusterCA(tmp_path, "ca"), ClusterCA(tmp_path, "other")
    pair = ca.server("host", ["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    async with ssh_host(context) as host:
        trusting = ssl.create_default_context(cafile=str(ca.files.certificate))
        host.target = replace(host.target, ssl_context=trusting)
        session = await dialled(host)
        await session.register(b"{}")
        session.close("enough")
        async with asyncio.timeout(20):
            await host.owners[0].lost.wait()

        host.target = replace(host.target, ssl_context=ssl.create_default_context(cafile=str(other.files.certificate)))
        with pytest.raises(DialError) as caught:
            await dialled(host)
        assert caught.value.hop == "tls"
        assert len(host.sessions) == 1


@pytest.mark.parametrize(
    ("said", "hop", "text"),
    [
        (b"", "http", "did not complete the WebSocket upgrade within 0.3 s"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nNot Found", "http", "404 Not Found to the upgrade"),
        (b"SSH-2.0-OpenSSH_9\r\n", "http", "no HTTP there"),
    ],
)
async def test_what_is_no_host_is_named(said: bytes, hop: str, text: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await reader.read()
        writer.close()
        await writer.wait_closed()
        ended.set()

    ended = asyncio.Event()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    target = DialTarget(host="127.0.0.1", port=port, path="", ssl_context=None, proxy_env=False)
    try:
        with pytest.raises(DialError, match=text) as caught:
            await dial_host(target, limits=channel_limits(), on_channel=nothing, deadline=0.3)
        async with asyncio.timeout(20):
            await ended.wait()
    finally:
        server.close()
        await server.wait_closed()
    assert caught.value.hop == hop


async def test_a_process_whose_threads_are_all_busy_gives_the_dial_up_in_time() -> None:
    let_go, busy = threading.Event(), ThreadPoolExecutor(1)
    async with ssh_host() as host:
        asyncio.get_running_loop().set_default_executor(busy)
        taken = busy.submit(let_go.wait, 30)
        try:
            with pytest.raises(DialError, match="every thread of this process is busy"):
                await dialled(host, deadline=0.1)
        finally:
            let_go.set()
        assert taken.result(), "the dial waited for the thread"
