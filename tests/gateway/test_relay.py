"""The apiserver's side over real TLS: answers that cannot be relayed, apiservers that fail, upgrades."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.gateway.kit import AUTH, GET, OK, UPGRADE, Answer, Apiside, Pki, status_of, world
from tests.waiting import until

pytestmark = pytest.mark.asyncio


# -- the apiserver misbehaves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 30,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
        b"",
    ],
    ids=["no http", "two framings", "unasked 101", "endless 100", "endless head", "closed"],
)
async def test_an_answer_that_cannot_be_relayed_is_502(pki: Pki, said: bytes) -> None:
    async def answer(side: Apiside) -> None:
        await side.head()
        if said:
            await side.say(said)
            await side.until_gone()

    async with world(pki, answer=answer) as w:
        got = await w.ask(GET)
        final = got[got.rfind(b"HTTP/1.1 5") :]
        assert status_of(final)["code"] == 502
        assert b"TWR306" in final
        await until(lambda: not w.gateway.upstreams.bearer.open_count)


async def test_bytes_behind_an_answer_are_no_answer_to_the_next_request(pki: Pki) -> None:
    count = 0

    async def answer(side: Apiside) -> None:
        nonlocal count
        count += 1
        await side.head()
        await side.say(OK + (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison" if count == 1 else b""))
        await side.until_gone()

    async with world(pki, answer=answer) as w:
        caller = await w.call()
        for _ in range(2):
            await caller.say(GET)
            assert (await caller.answer())[1] == b"{}"
        assert count == 2


async def test_a_kept_connection_that_died_is_replaced_for_reads_only(pki: Pki) -> None:
    async def answer(side: Apiside) -> None:
        """Answers one request, then takes the next and hangs up."""
        side.server.heads.append(await side.head())
        await side.say(OK)
        side.server.heads.append(await side.head())

    async with world(pki, answer=answer) as w:
        caller = await w.call()
        for _ in range(3):
            await caller.say(GET)
            assert (await caller.answer())[1] == b"{}"
        await caller.say(b"DELETE / HTTP/1.1\r\n" + AUTH + b"\r\n")
        assert status_of(await caller.rest())["code"] == 502


async def test_an_apiserver_that_is_down_is_named(pki: Pki) -> None:
    async with world(pki, dial_port=1) as w:
        document = status_of(await w.ask(GET))
        assert document["code"] == 502
        assert "127.0.0.1:1" in document["message"]
        assert "TWR301" in document["message"]


@pytest.mark.slow
async def test_an_apiserver_that_is_silent_is_504(pki: Pki) -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    async with server, world(pki, dial_port=server.sockets[0].getsockname()[1], dial_deadline=0.3) as w:
        document = status_of(await w.ask(GET))
        assert (document["code"], document["reason"]) == (504, "Timeout")
        assert "TWR303" in document["message"]


@pytest.mark.slow
async def test_who_uploads_to_a_silent_apiserver_still_hears_why_it_failed(pki: Pki) -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    size = 16 * 1024 * 1024  # more than sockets and the gateway take unread
    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    async with server, world(pki, dial_port=server.sockets[0].getsockname()[1], dial_deadline=0.3) as w:
        caller = await w.call()
        await caller.say(b"PUT /api HTTP/1.1\r\n" + AUTH + b"Content-Length: %d\r\n\r\n" % size + bytes(size))
        assert "TWR303" in status_of(await caller.rest())["message"]


async def test_an_apiserver_with_a_foreign_certificate_gets_nothing(pki: Pki) -> None:
    async with world(pki, ca_pem=pki.foreign.pem.decode()) as w:
        document = status_of(await w.ask(GET))
        assert "TWR304" in document["message"]
        assert w.apiserver.heads == []


async def test_too_many_connections_get_429_with_retry_after(pki: Pki) -> None:
    async def answer(side: Apiside) -> None:
        side.server.heads.append(await side.head())
        await side.until_gone()

    async with world(pki, answer=answer, limit=1) as w:
        first = await w.call()
        await first.say(GET)
        await until(lambda: w.apiserver.heads)
        got = await w.ask(GET)
        assert b"\r\nRetry-After: 1\r\n" in got
        assert status_of(got)["code"] == 429


# -- upgrades ---------------------------------------------------------------------------------------------------------

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-A: b\r\n\r\n"


async def test_an_upgrade_splices_both_ways_with_half_close(pki: Pki) -> None:
    async def answer(side: Apiside) -> None:
        side.server.heads.append(await side.head())
        await side.say(SWITCH + b"first")
        side.server.rest = await side.reader.readexactly(10)
        await side.say(b"second")
        side.writer.close()

    async with world(pki, answer=answer) as w:
        caller = await w.call()
        await caller.say(UPGRADE + b"early")
        head = await caller.head()
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"X-A: b\r\n" in head
        assert b"Connection: Upgrade\r\nUpgrade: websocket\r\n" in head
        assert await caller.read(5) == b"first"
        await caller.say(b"bytes")
        assert await caller.rest() == b"second"
        assert w.apiserver.rest == b"earlybytes"
        assert b"Connection: Upgrade\r\nUpgrade: websocket\r\n" in w.apiserver.heads[0]
        caller.close()
        await w.seen.wait_for(1)
        assert (w.seen.records[0].verb, w.seen.records[0].code) == ("connect", 101)


async def test_what_was_sent_before_an_end_without_close_notify_arrives_whole(pki: Pki) -> None:
    """As Go ends it when a slow reader leaves no room for the alert."""
    data = bytes(range(256)) * 1024

    async def answer(side: Apiside) -> None:
        await side.head()
        await side.say(SWITCH + data)
        await until(lambda: not side.writer.transport.get_write_buffer_size())
        side.writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
        await side.until_gone()

    async with world(pki, answer=answer) as w:
        caller = await w.call()
        await caller.say(UPGRADE)
        await caller.head()
        assert await caller.reader.readexactly(len(data)) == data
        assert await caller.reader.read() == b"", "an end, and no reset that eats what is under way"
        caller.close()
        await w.seen.wait_for(1)
        record = w.seen.records[0]
        assert (record.code, record.fault, record.bytes_out) == (101, "TWR306", len(data)), "operators see what it was"


async def test_what_a_caller_says_after_the_apiserver_is_gone_harms_nobody(pki: Pki) -> None:
    leave = asyncio.Event()

    async def answer(side: Apiside) -> None:
        await side.head()
        await side.say(SWITCH)
        await leave.wait()
        side.writer.transport.abort()

    async with world(pki, answer=answer) as w:
        caller = await w.call()
        await caller.say(UPGRADE)
        await caller.head()
        leave.set()
        for _ in range(50):
            caller.writer.write(b"x" * 1000)
            await asyncio.sleep(0.001)
        assert await caller.until_gone() == b""
        await w.seen.wait_for(1)
        assert [record.code for record in w.seen.records] == [101]
        assert w.gateway.upstreams.bearer.open_count == 0


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", 403),
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", 400),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 502),
        (b"HTTP/1.1 302 Found\r\nLocation: https://evil/\r\nContent-Length: 0\r\n\r\n", 502),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", 502),
    ],
)
async def test_an_upgrade_that_is_not_made_ends_both_sockets_and_nothing_behind_it_is_sent(
    pki: Pki, said: bytes, code: int
) -> None:
    gone = asyncio.Event()

    async def answer(side: Apiside) -> None:
        side.server.heads.append(await side.head())
        await side.say(said)
        side.server.rest = await side.until_gone()
        gone.set()

    async with world(pki, answer=answer) as w:
        got = await w.ask(UPGRADE + GET.replace(b"/api", b"/second"))
        assert int(got.split(b" ")[1]) == code
        assert b"Location" not in got
        assert b"Connection: close\r\n" in got
        await asyncio.wait_for(gone.wait(), 30)
        assert w.apiserver.rest == b""
        assert len(w.apiserver.heads) == 1
        assert w.gateway.upstreams.bearer.idle_count == 0


# -- the agent's own credential ---------------------------------------------------------------------------------------

OWN_401 = b'{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","reason":"Unauthorized","code":401}'


def answering_401(body: bytes, kind: bytes = b"application/json") -> Answer:
    async def answer(side: Apiside) -> None:
        await side.head()
        head = b"HTTP/1.1 401 Unauthorized\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
        await side.say(head % (kind, len(body)) + body)
        await side.until_gone()

    return answer


@pytest.mark.parametrize(
    "body", [OWN_401, b"k8s\0\n\x0c\n\x02v1\x12\x06Status\x12\x0cUnauthorized"], ids=["json", "protobuf"]
)
async def test_an_apiserver_that_refuses_the_agent_itself_is_named(pki: Pki, body: bytes) -> None:
    async with world(pki, answer=answering_401(body)) as w:
        caller = await w.call(pki.client())
        await caller.say(b"GET /api HTTP/1.1\r\nHost: x\r\n\r\n")
        head, answer = await caller.answer()
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"TWR305" in answer
        assert b"401 to the agent's own credential" in answer
        assert b"towerctl manifest member" in answer


async def test_other_peoples_401_is_their_own(pki: Pki) -> None:
    get = b"GET /api/v1/namespaces/x/services/y/proxy/z HTTP/1.1\r\nHost: x\r\n\r\n"
    for request, by_certificate, body in (
        (GET, False, OWN_401),  # a bearer token that the apiserver does not know
        (get, True, OWN_401),  # what a service says that the apiserver proxies
        (b"GET /apis/x HTTP/1.1\r\nHost: x\r\n\r\n", True, b"log in first"),
    ):
        async with world(pki, answer=answering_401(body)) as w:
            caller = await w.call(pki.client() if by_certificate else None)
            await caller.say(request)
            head, answer = await caller.answer()
            assert head.startswith(b"HTTP/1.1 401 ")
            assert answer == body
