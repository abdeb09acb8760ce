"""How requests and connections end over real TLS: refusals, departures, revocation, draining; their records."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import pytest

from certs.revocation import RevocationList
from protocol import defaults
from tests.gateway.kit import (
    ADMIN,
    CHUNKED_OK,
    GET,
    HOST,
    OK,
    WATCH,
    Apiside,
    Pki,
    World,
    always,
    always_ok,
    status_of,
    world,
)
from tests.waiting import until

pytestmark = pytest.mark.asyncio


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


@pytest.mark.slow
async def test_who_is_not_recognised_cannot_sit_on_a_connection(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "GATEWAY_TICK", 0.05)

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
    async with world(pki, head_deadline=1.0) as w:
        by_token, by_certificate = await w.call(), await w.call(pki.client())
        await by_token.say(GET)
        await by_token.answer()
        await asyncio.sleep(1.5)  # longer than who is not recognised may say nothing
        await by_token.say(GET)
        assert (await by_token.answer())[1] == b"{}"
        await by_certificate.say(WATCH)
        assert (await by_certificate.answer())[1] == b"{}"


async def whole_first(side: Apiside) -> None:
    """As Go does: an answer to a short body leaves when all of it has come."""
    while True:
        head = (await side.head()).lower()
        if b"chunked" in head:
            await side.reader.readuntil(b"\r\n0\r\n\r\n")
        else:
            await side.reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
        known = b"theirs" in head or b"impersonate" in head
        await side.say(OK if known else b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")


POST = GET.replace(b"GET", b"POST")[:-2]


@pytest.mark.parametrize("half", [b"Content-Length: 3\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"])
async def test_who_is_not_recognised_cannot_stay_by_a_body_that_does_not_come(
    pki: Pki, monkeypatch: pytest.MonkeyPatch, half: bytes
) -> None:
    monkeypatch.setattr(defaults, "GATEWAY_TICK", 0.05)
    async with world(pki, answer=whole_first, head_deadline=0.3) as w:
        caller = await w.call()
        await caller.say(POST.replace(b"theirs", b"made-up") + half)
        answer = await caller.rest()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert "TWR408" in status_of(answer)["message"]
        await until(lambda: not w.gateway.upstreams.bearer.open_count)


@pytest.mark.parametrize("who", ["by a body that comes", "by an earlier answer", "by a certificate"])
@pytest.mark.slow
async def test_who_is_or_may_be_known_has_time_for_a_body(pki: Pki, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    monkeypatch.setattr(defaults, "GATEWAY_TICK", 0.05)
    size = 10 if who != "by a body that comes" else 64 * defaults.KIB
    async with world(pki, answer=whole_first, head_deadline=0.3) as w:
        caller = await w.call(pki.client() if who == "by a certificate" else None)
        if who == "by an earlier answer":
            await caller.say(POST + b"Content-Length: 1\r\n\r\n{")
            assert (await caller.answer())[1] == b"{}"
        await caller.say(POST + b"Content-Length: %d\r\n\r\n" % size + bytes(size - 1))
        await asyncio.sleep(1.0)  # longer than somebody unknown may say nothing
        await caller.say(b"}")
        assert (await caller.answer())[1] == b"{}"


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (GET.replace(b"/api", b"/api?timeout=abc"), b"400 Bad Request\r\nContent-Length: 0"),
        (GET.replace(b"/api", b"/api?timeout=abc"), b"400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n0"),
        (GET.replace(b"GET", b"OPTIONS"), b"204 No Content"),
    ],
    ids=["whole", "chunked", "preflight"],
)
async def test_an_answer_from_before_the_token_was_looked_at_recognises_nobody(
    pki: Pki, monkeypatch: pytest.MonkeyPatch, asked: bytes, answered: bytes
) -> None:
    monkeypatch.setattr(defaults, "GATEWAY_TICK", 0.05)
    async with world(pki, answer=always(b"HTTP/1.1 " + answered + b"\r\n\r\n"), head_deadline=0.2) as w:
        caller = await w.call()
        await caller.say(asked)
        assert (await caller.rest()).startswith(b"HTTP/1.1 " + answered[:3])


@pytest.mark.parametrize("status", [b"403 Forbidden", b"404 Not Found"])
@pytest.mark.slow
async def test_a_caller_without_rights_is_a_known_one(pki: Pki, monkeypatch: pytest.MonkeyPatch, status: bytes) -> None:
    monkeypatch.setattr(defaults, "GATEWAY_TICK", 0.05)
    without_rights = always(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
    async with world(pki, answer=without_rights, head_deadline=0.5) as w:
        caller = await w.call()
        for _ in range(2):
            await caller.say(GET)
            head, _ = await caller.answer()
            assert head.startswith(b"HTTP/1.1 " + status)
            assert b"Connection: close" not in head
            await asyncio.sleep(0.8)  # longer than who is not recognised may stay


@pytest.mark.parametrize("said", [GET, GET.replace(b"Authorization: Bearer theirs\r\n", b"")], ids=["unknown", "none"])
@pytest.mark.slow
async def test_who_is_not_recognised_cannot_stay_by_asking_again(pki: Pki, said: bytes) -> None:
    unauthorized = always(b"HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    async with world(pki, answer=unauthorized, head_deadline=1.0) as w:
        caller = await w.call()
        async with asyncio.timeout(30):
            while True:
                await caller.say(said)
                head, _ = await caller.answer()
                assert head.startswith(b"HTTP/1.1 401 ")
                if b"Connection: close" in head:
                    break
                await asyncio.sleep(0.05)
            assert await caller.rest() == b""


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
        await until(lambda: w.apiserver.rest)
        await w.seen.wait_for(1)
        assert (w.seen.records[0].verb, w.seen.records[0].code) == ("watch", 200)
        assert not w.gateway.connections


async def _watch_cut(w: World, cut) -> bytes:
    """What a watching certificate caller gets after `cut()`."""
    caller = await w.call(w.pki.client())
    await caller.say(WATCH)
    await caller.head()
    await caller.read(7)
    cut()
    try:
        async with asyncio.timeout(20):
            return await caller.reader.read()
    except ConnectionError:
        return b""


async def test_revocation_ends_a_running_watch_at_once_and_refuses_the_next_request(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "GATEWAY_TICK", 3600.0)  # nobody looks by the way
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


async def test_expiry_ends_a_running_watch_within_a_second(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    assert defaults.GATEWAY_TICK < 1.0
    monkeypatch.setattr(defaults, "GATEWAY_TICK", 0.05)
    async with world(pki, answer=watching) as w:
        looks: list[int] = []  # how many callers there are whenever somebody looks at the clock

        def now() -> float:
            looks.append(len(w.gateway.connections))
            return time.time() + 4000

        def expire() -> None:
            w.now = now

        assert await _watch_cut(w, expire) == b""
        await until(lambda: 0 in looks)
        assert looks.count(1) == 2, "the first look ends it: one at the time, one at the certificate"
        assert w.seen.records[-1].fault == "TWR402"


@pytest.mark.slow
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
        await until(lambda: w.apiserver.heads and len(w.gateway.connections) == 2)
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


async def test_an_answer_that_did_not_say_so_is_not_the_last_one(pki: Pki) -> None:
    release = asyncio.Event()

    async def answer(side: Apiside) -> None:
        await side.head()
        await side.say(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha")
        await release.wait()
        await side.say(b"lf")
        await always_ok(side)

    async with world(pki, answer=answer) as w:
        caller = await w.call()
        await caller.say(GET)
        await caller.head()
        assert await caller.read(2) == b"ha"
        w.gateway.drain()
        release.set()
        assert await caller.read(2) == b"lf"
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


async def test_a_watch_that_falls_silent_within_a_chunk_is_not_ended_there(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "GATEWAY_TICK", 3600.0)  # the looks are those below
    release = asyncio.Event()

    async def torn(side: Apiside) -> None:
        await side.head()
        await side.say(CHUNKED_OK + b'9\r\n{"ha')
        await release.wait()
        await side.say(b'":1}\n\r\n')
        await side.until_gone()

    async with world(pki, answer=torn) as w:
        watch = await w.call(pki.client())
        await watch.say(WATCH)
        await watch.head()
        assert await watch.read(7) == b'9\r\n{"ha'
        for _ in range(3):
            w.gateway.drain()
        release.set()
        assert await watch.rest() == b'":1}\n\r\n0\r\n\r\n'


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


@pytest.mark.parametrize(("half", "deadline", "code"), [(b"GET /api HTTP/1.1\nHo", 20.0, 400), (b"GET /a", 0.5, 408)])
async def test_a_head_that_never_becomes_whole_is_not_recorded_as_the_request_before_it(
    pki: Pki, half: bytes, deadline: float, code: int
) -> None:
    async with world(pki, head_deadline=deadline) as w:
        caller = await w.call(pki.client())
        await caller.say(b"GET /api HTTP/1.1\r\nHost: x\r\n\r\n")
        await caller.answer()
        await caller.say(half)
        answer = await caller.rest()
        good, bad = w.seen.records
        assert (good.code, bad.code) == (200, code)
        assert bad.audit_id != good.audit_id
        assert f"Audit-Id: {bad.audit_id}\r\n".lower().encode() in answer.lower()


@pytest.mark.parametrize("certificate", [True, False])
async def test_who_asks_and_does_not_read_is_refused_no_further_until_it_reads(pki: Pki, certificate: bool) -> None:
    """Refusals cost the apiserver nothing: only their reader sets them a bound."""
    asked, request = 4000, b"GET /api HTTP/1.1\r\nHost: x\r\nImpersonate-User: jane\r\n\r\n"
    async with world(pki, head_deadline=60.0) as w:
        caller = await w.call(pki.client() if certificate else None)
        await until(lambda: w.gateway.connections)
        (connection,), other = w.gateway.connections, await w.call(pki.client())
        for transport, size in ((caller.writer.transport, socket.SO_RCVBUF), (connection.transport, socket.SO_SNDBUF)):
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, size, 16 * defaults.KIB)
        caller.writer.transport.pause_reading()
        caller.writer.write(asked * request)
        await until(lambda: connection.full)
        refused = len(w.seen.records)
        for _ in range(20):  # each has the gateway go on with the other one's requests, if it does
            await other.say(request)
            await other.answer()
        assert len(w.seen.records) == refused + 20
        assert refused < asked
        caller.writer.transport.resume_reading()
        for _ in range(asked):
            head, _ = await caller.answer()
            assert head.startswith(b"HTTP/1.1 403 " if certificate else b"HTTP/1.1 401 ")
