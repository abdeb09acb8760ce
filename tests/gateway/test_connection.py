"""One caller's connection over real TLS: bodies, pipelining, upgrades, deadlines, revocation, faults of either side."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from certs.revocation import RevocationList
from tests.gateway.kit import ADMIN, HOST, OK, Apiside, Pki, World, always_ok, world
from tests.gateway.test_head import AMBIGUOUS

pytestmark = pytest.mark.asyncio

AUTH = b"Host: x\r\nAuthorization: Bearer theirs\r\n"
GET = b"GET /api HTTP/1.1\r\n" + AUTH + b"\r\n"
WATCH = b"GET /api/v1/pods?watch=true HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED_OK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"GET /exec HTTP/1.1\r\n" + AUTH + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def status_of(answer: bytes) -> dict:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head, answer
    document = json.loads(body)
    assert document["kind"] == "Status"
    assert document["code"] == int(head.split(b" ")[1])
    return document


# -- malformed and oversized ------------------------------------------------------------------------------------------


async def test_ambiguous_requests_get_400_and_nothing_goes_upstream(pki: Pki) -> None:
    async with world(pki) as w:
        for name, raw in AMBIGUOUS.items():
            answer = await w.ask(raw.replace(b"Host: a\r\n", AUTH, 1) + b"x" * 10)
            assert answer.startswith(b"HTTP/1.1 400 "), (name, answer)
            assert b"Connection: close\r\n" in answer, name
            assert status_of(answer)["details"]["causes"][0]["reason"] == "TWR409", name
        assert w.apiserver.heads == []
        assert w.apiserver.certificates == []
        assert [record.code for record in w.seen.records] == [400] * len(AMBIGUOUS)


async def test_a_head_that_is_too_large_gets_431(pki: Pki) -> None:
    async with world(pki) as w:
        answer = await w.ask(b"GET / HTTP/1.1\r\n" + AUTH + b"X: " + b"y" * (1 << 20))
        assert status_of(answer)["code"] == 431
        answer = await w.ask(b"GET / HTTP/1.1\r\n" + AUTH + b"X: y\r\n" * 300 + b"\r\n")
        assert status_of(answer)["code"] == 431
        assert w.apiserver.heads == []


async def test_a_head_that_drips_gets_408_at_the_deadline(pki: Pki) -> None:
    async with world(pki, head_deadline=0.2) as w:
        caller = await w.call()
        await caller.say(b"GET / HT")
        answer = await caller.rest()
        assert status_of(answer)["code"] == 408
        assert b"TWR408" in answer


async def test_malformed_chunks_in_mid_stream_end_both_sides(pki: Pki) -> None:
    gone = asyncio.Event()

    async def answer(side: Apiside) -> None:
        side.server.heads.append(await side.head())
        side.server.rest = await side.until_gone()
        gone.set()

    async with world(pki, answer=answer) as w:
        caller = await w.call()
        await caller.say(b"POST / HTTP/1.1\r\n" + AUTH + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await asyncio.wait_for(_until(lambda: w.apiserver.heads), 5)
        await caller.say(b"+5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n")
        assert status_of(await caller.rest())["code"] == 400
        await asyncio.wait_for(gone.wait(), 5)
        assert w.apiserver.rest in (b"", b"5\r\nhello\r\n")


# -- refusals ---------------------------------------------------------------------------------------------------------


async def test_a_refusal_keeps_the_connection_for_the_next_request(pki: Pki) -> None:
    async with world(pki) as w:
        caller = await w.call()
        await caller.say(b"GET /api HTTP/1.1\r\nHost: x\r\n\r\n")
        head, body = await caller.answer()
        assert head.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
        assert b"Connection:" not in head
        assert "TWR401" in json.loads(body)["message"]
        await caller.say(b"HEAD /api HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await caller.head()
        assert head.startswith(b"HTTP/1.1 401 ")
        await caller.say(GET)
        assert (await caller.answer())[1] == b"{}"
        assert len(w.apiserver.heads) == 1


@pytest.mark.parametrize("cut", [0, 7, len(GET)])
async def test_what_is_pipelined_behind_a_refused_request_is_the_next_one(pki: Pki, cut: int) -> None:
    """Dropped, its second half would be read as a request that nobody sent."""
    async with world(pki) as w:
        caller = await w.call()
        await caller.say(b"GET /api HTTP/1.1\r\nHost: x\r\n\r\n" + GET[:cut])
        assert (await caller.answer())[0].startswith(b"HTTP/1.1 401 ")
        await caller.say(GET[cut:])
        assert (await caller.answer())[1] == b"{}"
        assert len(w.apiserver.heads) == 1


async def test_who_is_not_recognised_cannot_sit_on_a_connection(pki: Pki) -> None:
    async def unauthorized(side: Apiside) -> None:
        while True:
            side.server.heads.append(await side.head())
            await side.say(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")

    nobody = b"GET /api HTTP/1.1\r\nHost: x\r\n\r\n"
    async with world(pki, answer=unauthorized, head_deadline=0.2) as w:
        for said in (b"", nobody, GET):  # nothing, no credential, a token that the apiserver does not know
            caller = await w.call()
            await caller.say(said)
            await caller.rest()
    async with world(pki, head_deadline=0.2) as w:
        by_token, by_certificate = await w.call(), await w.call(pki.client())
        await by_token.say(GET)
        await by_token.answer()
        await asyncio.sleep(1.0)  # two ticks of the gateway
        await by_token.say(GET)
        assert (await by_token.answer())[1] == b"{}"
        await by_certificate.say(WATCH)
        assert (await by_certificate.answer())[1] == b"{}"


async def test_a_refused_request_with_a_body_ends_the_connection(pki: Pki) -> None:
    async with world(pki) as w:
        answer = await w.ask(b"POST /api HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n" + GET)
        assert status_of(answer)["code"] == 401
        assert answer.count(b"HTTP/1.1 ") == 1
        assert w.apiserver.heads == []


async def test_policy_refuses_with_the_lines_to_add(pki: Pki) -> None:
    async with world(pki) as w:
        caller = await w.call(pki.client("alice", ()))
        await caller.say(WATCH)
        document = json.loads((await caller.answer())[1])
        assert (document["code"], document["reason"]) == (403, "Forbidden")
        assert '- "alice"' in document["message"]
        assert "TWR406" in document["message"]
        assert w.apiserver.heads == []
        await w.seen.wait_for(1)
        record = w.seen.records[0]
        assert (record.who, record.code, record.fault, record.verb) == ("alice", 403, "TWR406", "watch")


async def test_certificates_that_do_not_count_get_401_saying_which(pki: Pki) -> None:
    async with world(pki) as w:
        expired = pki.client("old", (), at=time.time() - 7200, ttl=3600)
        for certificate, words in ((expired, "expired at"), (pki.agent_identity(), "agent")):
            caller = await w.call(certificate)
            await caller.say(GET)
            document = json.loads((await caller.answer())[1])
            assert document["code"] == 401
            assert words in document["message"]
        assert w.apiserver.heads == []


# -- bodies -----------------------------------------------------------------------------------------------------------


async def echo(side: Apiside) -> None:
    """Answers with what the body was, by Content-Length."""
    while True:
        head = await side.head()
        side.server.heads.append(head)
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0
        )
        body = await side.reader.readexactly(length)
        await side.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


async def test_counted_bodies_both_ways(pki: Pki) -> None:
    async with world(pki, answer=echo) as w:
        caller = await w.call()
        for size in (1, 70_000, 3_000_000):
            body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            caller.writer.write(b"PUT / HTTP/1.1\r\n" + AUTH + b"Content-Length: %d\r\n\r\n" % size + body)
            assert (await caller.answer())[1] == body
        assert len(w.apiserver.certificates) == 1  # one kept connection


async def test_chunked_bodies_both_ways_with_trailers(pki: Pki) -> None:
    async def answer(side: Apiside) -> None:
        side.server.heads.append(await side.head())
        side.server.rest = await side.reader.readuntil(b"X-Sum: 1\r\n\r\n")
        await side.say(CHUNKED_OK + b"4\r\nwiki\r\n0\r\nGrpc-Status: 0\r\nConnection: x\r\n\r\n")

    async with world(pki, answer=answer) as w:
        caller = await w.call()
        await caller.say(b"POST / HTTP/1.1\r\n" + AUTH + b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n")
        await caller.say(b"0\r\nImpersonate-User: root\r\nX-Sum: 1\r\n\r\n")
        assert await caller.head() == CHUNKED_OK
        assert await caller.read(30) == b"4\r\nwiki\r\n0\r\nGrpc-Status: 0\r\n\r\n"
        assert w.apiserver.rest == b"5;a=b\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"


async def test_pipelined_requests_go_one_at_a_time(pki: Pki) -> None:
    async with world(pki, answer=echo) as w:
        caller = await w.call()
        post = b"POST / HTTP/1.1\r\n" + AUTH + b"Content-Length: 3\r\n\r\n"
        await caller.say(b"".join(post + b"%03d" % i for i in range(50)) + GET)
        for i in range(50):
            assert (await caller.answer())[1] == b"%03d" % i
        assert (await caller.answer())[1] == b""
        assert len(w.apiserver.certificates) == 1


async def test_a_flood_of_pipelined_requests_is_not_read_ahead(pki: Pki) -> None:
    release = asyncio.Event()

    async def answer(side: Apiside) -> None:
        side.server.heads.append(await side.head())
        await release.wait()
        await side.say(OK)
        await always_ok(side)

    async with world(pki, answer=answer) as w:
        caller = await w.call()
        caller.writer.write(GET * 60_000)  # 4 MB: more than buffers and sockets of this machine take
        await asyncio.wait_for(_until(lambda: w.apiserver.heads), 5)
        connection = next(iter(w.gateway.connections))
        await asyncio.wait_for(_until(lambda: connection.paused), 5)
        assert len(connection.held) < 400_000
        assert len(w.apiserver.heads) == 1
        release.set()
        assert (await caller.answer())[1] == b"{}"
        assert (await caller.answer())[1] == b"{}"


async def _until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def test_expect_100_continue(pki: Pki) -> None:
    async def answer(side: Apiside) -> None:
        head = await side.head()
        assert b"Expect: 100-continue\r\n" in head
        await side.say(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await side.reader.readexactly(5)
        await side.say(b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\n" + body)
        await always_ok(side)

    async with world(pki, answer=answer) as w:
        caller = await w.call()
        await caller.say(b"POST / HTTP/1.1\r\n" + AUTH + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert await caller.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await caller.say(b"hello")
        assert (await caller.answer())[1] == b"hello"
        await caller.say(GET)
        assert (await caller.answer())[1] == b"{}"


async def test_a_final_answer_in_place_of_100_ends_the_connection(pki: Pki) -> None:
    async def answer(side: Apiside) -> None:
        await side.head()
        await side.say(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
        side.server.rest = await side.until_gone()

    async with world(pki, answer=answer) as w:
        caller = await w.call()
        await caller.say(b"POST / HTTP/1.1\r\n" + AUTH + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        answer_bytes = await caller.rest()
        assert answer_bytes.startswith(b"HTTP/1.1 417 ")
        assert b"Connection: close\r\n" in answer_bytes


async def test_answers_without_a_body(pki: Pki) -> None:
    async def answer(side: Apiside) -> None:
        while True:
            head = await side.head()
            if head.startswith(b"HEAD"):
                await side.say(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
            elif head.startswith(b"DELETE"):
                await side.say(b"HTTP/1.1 204 No Content\r\n\r\n")
            else:
                await side.say(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nEtag: a\r\n\r\n")

    async with world(pki, answer=answer) as w:
        caller = await w.call()
        for method, code in ((b"HEAD", b"200"), (b"DELETE", b"204"), (b"GET", b"304"), (b"HEAD", b"200")):
            await caller.say(method + b" / HTTP/1.1\r\n" + AUTH + b"\r\n")
            assert (await caller.head()).split(b" ")[1] == code
        assert len(w.apiserver.certificates) == 1


async def test_an_answer_until_close_ends_cleanly_only_if_the_apiserver_ended_it(pki: Pki) -> None:
    async def answer(side: Apiside) -> None:
        head = await side.head()
        await side.say(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
        if b" /cut " in head:
            side.writer.transport.abort()
        else:
            side.writer.close()
            await side.writer.wait_closed()

    async with world(pki, answer=answer) as w:
        whole = await w.ask(GET)
        assert whole.endswith(b"\r\n\r\nuntil the end")
        assert b"Connection: close\r\n" in whole
        caller = await w.call()
        await caller.say(GET.replace(b"/api", b"/cut"))
        await caller.until_gone()
        await w.seen.wait_for(2)
        assert [record.fault for record in w.seen.records] == ["", "TWR306"]


async def test_http_1_0_is_answered_and_closed(pki: Pki) -> None:
    async with world(pki) as w:
        answer = await w.ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n" + AUTH + b"\r\n")
        assert answer.endswith(b"Connection: close\r\n\r\n{}")
        assert w.apiserver.heads[0].startswith(b"GET / HTTP/1.0\r\n")


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
        await asyncio.wait_for(_until(lambda: not w.gateway.upstreams.bearer.open_count), 5)


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


async def test_an_apiserver_that_is_silent_is_504(pki: Pki) -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    async with server, world(pki, dial_port=server.sockets[0].getsockname()[1]) as w:
        document = status_of(await w.ask(GET))
        assert (document["code"], document["reason"]) == (504, "Timeout")
        assert "TWR303" in document["message"]


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
        await asyncio.wait_for(_until(lambda: w.apiserver.heads), 5)
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
        await asyncio.wait_for(gone.wait(), 5)
        assert w.apiserver.rest == b""
        assert len(w.apiserver.heads) == 1
        assert w.gateway.upstreams.bearer.idle_count == 0


# -- callers that leave, certificates that end ------------------------------------------------------------------------


async def watching(side: Apiside) -> None:
    side.server.heads.append(await side.head())
    await side.say(CHUNKED_OK + b"2\r\n{}\r\n")
    await side.until_gone()
    side.server.rest = b"gone"


async def test_a_caller_that_leaves_ends_the_apiservers_request(pki: Pki) -> None:
    async with world(pki, answer=watching) as w:
        caller = await w.call(pki.client())
        await caller.say(WATCH)
        await caller.head()
        caller.close()
        await asyncio.wait_for(_until(lambda: w.apiserver.rest), 5)
        await w.seen.wait_for(1)
        assert (w.seen.records[0].verb, w.seen.records[0].code) == ("watch", 200)
        assert not w.gateway.connections


async def _watch_cut(w: World, cut) -> bytes:
    """What a watching certificate caller gets after `cut()`; asserts that it took less than a second."""
    caller = await w.call(w.pki.client())
    await caller.say(WATCH)
    await caller.head()
    await caller.read(7)
    cut()
    started = time.monotonic()
    try:
        async with asyncio.timeout(2):
            rest = await caller.reader.read()
    except ConnectionError:
        rest = b""
    assert time.monotonic() - started < 1.0
    return rest


async def test_revocation_ends_a_running_watch_within_a_second_and_refuses_the_next_request(pki: Pki) -> None:
    async with world(pki, answer=watching) as w:
        bystander = await w.call()
        await bystander.say(GET)
        await bystander.head()

        def revoke() -> None:
            w.revoked = RevocationList(number=1, host=HOST, issued_at=time.time(), users={ADMIN: time.time() + 1})
            w.gateway.recheck()

        assert await _watch_cut(w, revoke) == b""  # no last chunk: it does not look finished
        caller = await w.call(pki.client())
        await caller.say(WATCH)
        document = json.loads((await caller.answer())[1])
        assert document["code"] == 401
        assert "revoked" in document["message"]
        assert "TWR403" in [record.fault for record in w.seen.records]
        assert await bystander.read(7) == b"2\r\n{}\r\n"


async def test_a_revoked_caller_is_refused_at_its_next_request(pki: Pki) -> None:
    async with world(pki) as w:
        caller = await w.call(pki.client())
        await caller.say(WATCH)
        assert (await caller.answer())[0].startswith(b"HTTP/1.1 200 ")
        w.revoked = RevocationList(number=1, host=HOST, issued_at=time.time(), users={ADMIN: time.time() + 1})
        await caller.say(WATCH)
        assert (await caller.answer())[0].startswith(b"HTTP/1.1 401 ")


async def test_expiry_ends_a_running_watch_within_a_second(pki: Pki) -> None:
    async with world(pki, answer=watching) as w:

        def expire() -> None:
            w.now = lambda: time.time() + 4000

        assert await _watch_cut(w, expire) == b""
        assert w.seen.records[-1].fault == "TWR402"


async def test_draining_closes_idle_connections_and_says_close_on_running_ones(pki: Pki) -> None:
    release = asyncio.Event()

    async def answer(side: Apiside) -> None:
        side.server.heads.append(await side.head())
        await release.wait()
        await side.say(OK)
        await side.until_gone()

    async with world(pki, answer=answer) as w:
        idle, busy = await w.call(), await w.call()
        await busy.say(GET)
        await asyncio.wait_for(_until(lambda: w.apiserver.heads and len(w.gateway.connections) == 2), 5)
        w.gateway.drain()
        assert await idle.rest() == b""
        release.set()
        assert (await busy.rest()).endswith(b"Connection: close\r\n\r\n{}")


async def test_a_request_that_crosses_the_drain_of_an_idle_connection_is_answered(pki: Pki) -> None:
    async with world(pki) as w:
        caller = await w.call()
        await caller.say(GET)
        await caller.answer()
        w.gateway.drain()
        await caller.say(GET)
        assert (await caller.rest()).endswith(b"Connection: close\r\n\r\n{}")


async def test_a_busy_watch_ends_behind_a_whole_event_and_never_within_one(pki: Pki) -> None:
    async def events(side: Apiside) -> None:
        await side.head()
        await side.say(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not side.reader.at_eof():  # each event in two chunks, as the apiserver sends large ones
            await side.say(b'8\r\n{"half":\r\n')
            await asyncio.sleep(0.02)
            await side.say(b"3\r\n1}\n\r\n")
            await asyncio.sleep(0.02)

    async with world(pki, answer=events) as w:
        watch = await w.call(pki.client())
        await watch.say(WATCH)
        await watch.head()
        assert await watch.read(13) == b'8\r\n{"half":\r\n'
        w.gateway.drain()
        rest = (await watch.rest()).removeprefix(b"3\r\n1}\n\r\n")
        assert rest.endswith(b"0\r\n\r\n")
        assert set(rest.removesuffix(b"0\r\n\r\n").split(b'8\r\n{"half":\r\n3\r\n1}\n\r\n')) == {b""}


async def test_draining_ends_a_watch_cleanly_and_leaves_other_answers_alone(pki: Pki) -> None:
    async with world(pki, answer=watching) as w:
        watch, other = await w.call(pki.client()), await w.call(pki.client())
        await watch.say(WATCH)
        await other.say(WATCH.replace(b"?watch=true", b""))
        for caller in (watch, other):
            await caller.head()
            assert await caller.read(7) == b"2\r\n{}\r\n"
        w.gateway.drain()
        assert await watch.rest() == b"0\r\n\r\n"
        assert len(w.gateway.connections) >= 1
        assert not other.reader.at_eof()
        await w.seen.wait_for(1)
        assert [record.verb for record in w.seen.records] == ["watch"]


async def test_a_slow_reader_stops_the_apiserver_and_loses_nothing(pki: Pki) -> None:
    size = 32 << 20
    written = 0

    async def answer(side: Apiside) -> None:
        nonlocal written
        await side.head()
        await side.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        block = bytes(1 << 16)
        while written < size:
            await side.say(block)
            written += len(block)
        await side.until_gone()

    async with world(pki, answer=answer) as w:
        caller = await w.call()
        await caller.say(GET)
        await caller.head()
        caller.writer.transport.pause_reading()
        before = -1
        while before != written:
            before = written
            await asyncio.sleep(0.15)
        assert written < size
        caller.writer.transport.resume_reading()
        assert len(await caller.read(size)) == size


async def test_the_audit_record_names_everything_but_secrets(pki: Pki) -> None:
    async with world(pki) as w:
        caller = await w.call(pki.client())
        await caller.say(b"GET /api/v1/namespaces/a/pods?token=secret HTTP/1.1\r\nHost: x\r\n\r\n")
        await caller.answer()
        await w.seen.wait_for(1)
        record = w.seen.records[0]
        assert (record.who, record.verb, record.path, record.code) == (ADMIN, "list", "/api/v1/namespaces/a/pods", 200)
        assert "secret" not in repr(record)
        assert f"Audit-ID: {record.audit_id}\r\n".encode() in w.apiserver.heads[0]
        assert record.duration >= record.answered_after > 0
        assert record.caller_address.startswith("127.0.0.1:")
