"""The replica port as strangers, other kinds of peers and misbehaving replicas meet it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time

import pytest
import structlog

from certs.ca import Authority
from certs.keys import generate_key, key_to_pem
from certs.tls import replica_contexts
from daemon.faults import TowerError
from protocol.constants import Code
from tests.tower_server.replicas.kit import AUTHORITY, CONNECTED, Host, certificate, said, serving
from tests.waiting import PATIENCE, until
from tower_server.replicas import port as module
from tower_server.replicas.port import ReplicaPort
from tower_server.replicas.wire import FOLLOW, MAX_HEAD_BYTES, Held, Passing

pytestmark = pytest.mark.asyncio
HEAD = Passing("edge", "kubernetes", "192.0.2.1:5", "c-1")


def context_of(kind: str) -> ssl.SSLContext:
    """A certificate of this very CA, but of another kind than a replica's."""
    key = generate_key()
    public, at = key.public_key(), time.time()
    issued = {
        "server": lambda: AUTHORITY.issue_server("s1", [], public_key=public, at=at),
        "agent": lambda: AUTHORITY.issue_agent("edge", "a1", public_key=public, at=at),
        "serving": lambda: AUTHORITY.issue_serving("edge", public_key=public, at=at),
        "client": lambda: AUTHORITY.issue_client("tower:hq:admin", public_key=public, at=at),
    }[kind]()
    return replica_contexts(AUTHORITY.inner_bundle, chain_pem=issued.chain_pem, key_pem=key_to_pem(key))[1]


@pytest.mark.parametrize("kind", ["server", "agent", "serving", "client", "stranger", "nobody"])
async def test_nobody_but_a_replica_gets_a_word_in(kind):
    host = Host()
    if kind == "stranger":
        context = certificate("other", Authority.create("hq", at=time.time())).calling
        context.verify_mode = ssl.CERT_NONE
    elif kind == "nobody":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        context = context_of(kind)
    with structlog.testing.capture_logs() as lines:
        async with serving(host) as port:
            for line in (FOLLOW, HEAD.line()):
                assert await said(port, context, line) == b""
            assert not host.tunnel.opened
    assert [each["event"] for each in lines].count("replica-refused") == 1, "one line, however often they come"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (json.dumps({**json.loads(HEAD.line()), "hop": 2}).encode() + b"\n", "passed on before"),
        (b'{"type": "dance"}\n', "asks for 'dance'"),
        (b"GET / HTTP/1.1\r\n\r\n", "not JSON"),
    ],
)
async def test_what_is_no_head_is_refused_with_what_is_wrong(line, text):
    host = Host()
    async with serving(host) as port:
        answer = json.loads(await said(port, certificate("other").calling, line))
        assert (answer["type"], answer["code"]) == ("refused", Code.PROTOCOL)
        assert text in answer["text"]
        assert not host.tunnel.opened


async def test_a_head_has_a_bound_in_size_and_time(monkeypatch):
    monkeypatch.setattr(module.defaults, "HEAD_DEADLINE", 0.1)
    async with serving(Host()) as port:
        assert await said(port, certificate("other").calling, b"x" * (MAX_HEAD_BYTES + 1)) == b""
        assert await said(port, certificate("other").calling, b"x") == b""
        assert not port.unasked


async def test_connections_that_say_nothing_are_bounded_in_number(monkeypatch):
    monkeypatch.setattr(module, "MAX_UNASKED", 1)
    async with serving(Host()) as port:
        _, silent = await asyncio.open_connection(
            *port.address, ssl=certificate("other").calling, server_hostname="owner"
        )
        await until(lambda: port.unasked)
        assert await said(port, certificate("more").calling, HEAD.line()) == b""
        silent.transport.abort()


async def test_strangers_without_a_handshake_are_bounded_in_number_and_keep_nobody_out(monkeypatch):
    monkeypatch.setattr(module, "MAX_IN_HANDSHAKE", 4)
    async with serving(Host()) as port:
        silent = [await asyncio.open_connection(*port.address) for _ in range(12)]
        async with asyncio.timeout(PATIENCE):
            for reader, _ in silent[:8]:  # the oldest gave way
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
        assert len(port.in_handshake) == 4
        assert json.loads(await said(port, certificate("other").calling, b"{}\n"))["type"] == "refused"
        for _, writer in silent:
            writer.transport.abort()
        await until(lambda: not port.in_handshake)


async def test_a_follower_is_told_what_is_held_and_each_change():
    host = Host()
    async with serving(host) as port:
        reader, writer = await asyncio.open_connection(
            *port.address, ssl=certificate("other").calling, server_hostname="owner"
        )
        writer.write(FOLLOW)

        async def line() -> dict:
            async with asyncio.timeout(PATIENCE):
                return json.loads(await reader.readline())

        assert [(await line())["type"] for _ in range(2)] == ["holds", "alive"]
        port.tell()
        assert await line() == {"type": "alive", "ready": True}, "what stays as it is, is not said again"
        host.said = {"far": Held(1, CONNECTED, {})}
        host.ready = False
        port.tell()
        assert await line() == {"type": "lost", "cluster": "edge", "meant": False}
        assert (await line())["cluster"] == "far"
        assert await line() == {"type": "alive", "ready": False}
        writer.transport.abort()


async def test_a_port_that_is_taken_says_so():
    async with serving(Host()) as port:
        with pytest.raises(TowerError) as caught:
            await ReplicaPort(Host(), certificate("second")).start(*port.address)
    assert caught.value.code == "TWR103"
    assert str(port.address[1]) in caught.value.message
    assert "replica.listen" in caught.value.mend
