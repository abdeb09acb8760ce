"""One caller's connection over real TLS: malformed heads, bodies, pipelining."""

from __future__ import annotations

import asyncio

import pytest

from tests.gateway.kit import AUTH, CHUNKED_OK, GET, OK, Answer, Apiside, Pki, always_ok, status_of, world
from tests.gateway.test_head import AMBIGUOUS
from tests.waiting import until

pytestmark = pytest.mark.asyncio


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
        await until(lambda: w.apiserver.heads)
        await caller.say(b"+5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n")
        assert status_of(await caller.rest())["code"] == 400
        await asyncio.wait_for(gone.wait(), 30)
        assert w.apiserver.rest in (b"", b"5\r\nhello\r\n")


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
        await until(lambda: w.apiserver.heads)
        connection = next(iter(w.gateway.connections))
        await until(lambda: connection.paused)
        assert len(connection.held) < 400_000
        assert len(w.apiserver.heads) == 1
        release.set()
        assert (await caller.answer())[1] == b"{}"
        assert (await caller.answer())[1] == b"{}"


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


def before_the_body(said: bytes) -> Answer:
    """An apiserver that answers the head alone."""

    async def answer(side: Apiside) -> None:
        await side.head()
        await side.say(said)
        side.server.rest = await side.until_gone()

    return answer


async def test_a_final_answer_in_place_of_100_ends_the_connection(pki: Pki) -> None:
    said = b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n"
    async with world(pki, answer=before_the_body(said)) as w:
        caller = await w.call()
        await caller.say(b"POST / HTTP/1.1\r\n" + AUTH + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        answer_bytes = await caller.rest()
        assert answer_bytes.startswith(b"HTTP/1.1 417 ")
        assert b"Connection: close\r\n" in answer_bytes


async def test_an_answer_to_half_a_request_says_that_the_connection_ends(pki: Pki) -> None:
    """As where a body is larger than the apiserver takes: who is not told sends the next request into a closed one."""
    said = b"HTTP/1.1 413 Request Entity Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig"
    async with world(pki, answer=before_the_body(said)) as w:
        caller = await w.call()
        await caller.say(b"POST / HTTP/1.1\r\n" + AUTH + b"Content-Length: 9000000\r\n\r\nhalf")
        answer_bytes = await caller.rest()
        assert answer_bytes.startswith(b"HTTP/1.1 413 ")
        assert answer_bytes.endswith(b"Connection: close\r\n\r\nbig")


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
