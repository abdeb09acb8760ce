"""The gateway over real TLS on loopback: what callers and the apiserver see."""

from __future__ import annotations

import pytest

from protocol import defaults
from tests.gateway.kit import ADMIN, ADMINS, Pki, world
from tests.waiting import until

pytestmark = pytest.mark.asyncio

GET = b"GET /api/v1/pods?limit=5 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer theirs\r\n\r\n"
CERT_GET = b"GET /api/v1/pods HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_a_bearer_caller_reaches_the_apiserver_with_its_own_token_and_no_certificate(pki: Pki) -> None:
    async with world(pki, agent_certificate=True) as w:
        caller = await w.call()
        await caller.say(GET)
        head, body = await caller.answer()
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert body == b"{}"
        assert b"Authorization: Bearer theirs\r\n" in w.apiserver.heads[0]
        assert w.apiserver.certificates == [None]


async def test_a_certificate_caller_is_impersonated_by_the_agents_own_credential(pki: Pki) -> None:
    async with world(pki) as w:
        caller = await w.call(pki.client())
        await caller.say(CERT_GET)
        assert (await caller.answer())[1] == b"{}"
        head = w.apiserver.heads[0]
        assert f"Impersonate-User: {ADMIN}\r\nImpersonate-Group: {ADMINS}\r\n".encode() in head
        assert b"Authorization: Bearer own-token\r\n" in head
        assert b"X-Forwarded-For: 127.0.0.1\r\n" in head


async def test_a_connection_that_nobody_needs_is_given_back_to_the_apiserver(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "GATEWAY_TICK", 0.02)
    async with world(pki) as w:
        caller = await w.call()
        await caller.say(GET)
        await caller.answer()
        await until(lambda: w.gateway.upstreams.bearer.idle_count == 1)
        monkeypatch.setattr(defaults, "UPSTREAM_IDLE", 0.05)
        await until(lambda: w.gateway.upstreams.bearer.open_count == 0)
        await caller.say(GET)
        assert (await caller.answer())[1] == b"{}"
