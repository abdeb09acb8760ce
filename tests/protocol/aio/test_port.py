"""The tunnel port's limits against a peer that sets out to use them up: it keeps out nobody but its own neighbours."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest

from protocol.aio.port import network_of
from protocol.constants import Code
from tests.protocol.aio.rawagent import RawAgent, connected
from tests.protocol.aio.tunnels import PATIENCE, Tower, tower

SITTER = "127.0.0.2"  # loopback has many addresses: the honest agent comes from another one


async def sit(made: Tower, context: ssl.SSLContext | None) -> RawAgent:
    return RawAgent(*await asyncio.open_connection(*made.address, ssl=context, local_addr=(SITTER, 0)))


@pytest.mark.asyncio
@pytest.mark.parametrize("stage", ["tcp", "tls", "upgraded"])
async def test_one_network_does_not_take_the_places_of_all_others(contexts: Any, stage: str) -> None:
    async with tower(*contexts, max_unauthenticated=4, deadline=5.0) as made:
        idle = [await sit(made, None if stage == "tcp" else made.client_context) for _ in range(4)]
        try:
            if stage == "upgraded":
                for raw in idle:
                    await raw.upgrade()
            await made.dial(instance="honest")
            refusal = await made.refusal()
            assert refusal.code is Code.BUSY
            assert "most of them from there" in refusal.text
            async with asyncio.timeout(PATIENCE):
                try:
                    assert await idle[0].reader.read() == b""  # its oldest gave way
                except ConnectionError:
                    pass
            assert len(made.listener._waiting) == 3  # and the others still wait
        finally:
            for raw in idle:
                raw.writer.transport.abort()


@pytest.mark.asyncio
@pytest.mark.parametrize("endless", [b"0\r\nX: ", b"1;"], ids=["trailer", "extension"])
async def test_what_is_no_body_is_bounded_too(endless: bytes) -> None:
    async with tower() as made, connected(made) as raw:
        raw.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + endless + b"x" * 200_000)
        assert (await raw.head()).startswith("HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("remote", "network"),
    [
        ("192.0.2.7:4321", "192.0.2.7"),
        ("::ffff:192.0.2.7:4321", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6:4321", "2001:db8:1:2::/64"),
        ("fe80::1%eth0:4321", "fe80::/64"),
        ("local", "local"),
    ],
)
def test_networks(remote: str, network: str) -> None:
    assert network_of(remote) == network
