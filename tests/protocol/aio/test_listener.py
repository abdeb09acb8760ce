"""The tunnel port against everything that is no agent, or a hostile one: a clear refusal each, counted, and every other
tunnel untouched."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from protocol.aio import busypoll
from protocol.aio.busypoll import PAYS
from protocol.aio.listener import MAX_SAID, Admission, TunnelListener
from protocol.aio.port import ServerLink
from protocol.aio.request import MAX_REQUEST_BODY, MAX_REQUEST_HEAD, HttpRequest, HttpResponse
from protocol.aio.tlsfailure import BUSY_ALERT, PLAIN_HTTP_ANSWER
from protocol.aio.tlspump import TlsPump
from protocol.aio.tunnel import Tunnel
from protocol.constants import HEADER, Code, FrameType
from protocol.defaults import KIB, MAX_HANDSHAKE_BYTES
from protocol.errors import HandshakeRejected
from protocol.flow import Budget, Limits
from protocol.frames import U64, encode, encode_reason
from tests.protocol import playbook
from tests.protocol.aio.newkeys import ask_for_new_keys
from tests.protocol.aio.rawagent import RawAgent, connected, request
from tests.protocol.aio.tunnels import PATIENCE, Echo, Recorder, Refusal, Tower, accepting, agent, tower

pytestmark = pytest.mark.asyncio


class Bystander:
    """An honest tunnel that must not notice anything."""

    def __init__(self, made: Tower, tunnel: Tunnel, stream: Any, caller: Recorder) -> None:
        self.made = made
        self._tunnel = tunnel
        self._stream = stream
        self._caller = caller

    async def untouched(self) -> None:
        had = len(self._caller.received)
        self._stream.write(b"still here")
        await self._caller.bytes(had + 10)
        assert self._tunnel.closed is None
        assert self._caller.calls == ["made"]


@pytest_asyncio.fixture
async def bystander() -> AsyncIterator[Bystander]:
    async with tower(deadline=30.0) as made:
        server, _ = await made.pair(accepting(Echo()), instance="honest")
        caller = Recorder()
        yield Bystander(made, server, await server.open("kubernetes", caller), caller)


# ---- HTTP beside the tunnel -----------------------------------------------------------------------------------------


async def test_other_requests_are_handed_on_and_answered() -> None:
    seen: list[HttpRequest] = []

    async def http(request: HttpRequest) -> HttpResponse:
        seen.append(request)
        return HttpResponse(201, b"made\n", "text/plain", [("Retry-After", "3")])

    async with tower(http=http) as made, connected(made) as raw:
        raw.write(b"POST /v1/enrolment?token=x HTTP/1.1\r\nHost: tower\r\nContent-Length: 5\r\n\r\nhel")
        await asyncio.sleep(0.01)
        raw.write(b"lo")
        answer = (await raw.rest()).decode()
        assert answer.startswith("HTTP/1.1 201 Created\r\n")
        assert "\r\nRetry-After: 3\r\n" in answer
        assert answer.endswith("\r\n\r\nmade\n")
        (request,) = seen
        assert (request.method, request.target, request.body) == ("POST", "/v1/enrolment?token=x", b"hello")
        assert request.remote.startswith("127.0.0.1:")
        assert made.refusals == []


async def test_a_handler_that_fails_is_500_without_details(caplog: pytest.LogCaptureFixture) -> None:
    async def http(request: HttpRequest) -> HttpResponse:
        raise RuntimeError("secret detail")

    async with tower(http=http) as made, connected(made) as raw:
        raw.write(b"GET /v1/enrolment?token=s3cret HTTP/1.1\r\nHost: tower\r\n\r\n")
        answer = await raw.rest()
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"secret" not in answer
        assert "s3cret" not in caplog.text.split("Traceback")[0]


@pytest.mark.parametrize(
    ("sent", "status", "says"),
    [
        (b"\x16\x03\x01\x02\x00garbage", 400, "malformed HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 400, "malformed HTTP"),
        (b"GET /v1/tunnel HTTP/1.1\nHost: x\nContent-Length: +5\n\n", 400, "malformed HTTP"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400, "malformed HTTP"),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "malformed HTTP",
        ),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * MAX_REQUEST_HEAD + b"\r\n\r\n", 431, "head above 16384 bytes"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431, "more than 100 header fields"),
        (b"GET /" + b"x" * 200 * KIB, 431, "head above 16384 bytes"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n\r\n", 413, f"body above {MAX_REQUEST_BODY}"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", 413, "body above"),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"8000\r\n" + b"x" * 32768 + b"\r\n8001\r\n" + b"x" * 32769,
            413,
            "body above",
        ),
        (request(path="/elsewhere"), 404, "it is at /v1/tunnel"),
        (request(Sec_WebSocket_Protocol=None), 400, "tower.v1"),
        (request(Sec_WebSocket_Protocol="kubesphere-v1"), 400, "tower.v1"),
        (request(Origin="https://evil.example"), 403, ""),
        (request(Sec_WebSocket_Version="8"), 400, ""),
        (request(Sec_WebSocket_Key="short"), 400, ""),
        (request(Upgrade=None, Connection=None), 426, ""),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_is_no_agent_gets_a_clear_answer(bystander: Bystander, sent: bytes, status: int, says: str) -> None:
    async with connected(bystander.made) as raw:
        raw.write(sent)
        head = await raw.head()
        assert head.startswith(f"HTTP/1.1 {status} ")
        raw.writer.write_eof()
        assert says in head + (await raw.rest()).decode()
        refusal = await bystander.made.refusal()
        assert (refusal.stage, refusal.code, refusal.hello) == ("http", Code.PROTOCOL, None)
        assert says in refusal.text or status in (403, 426, 400)
        await bystander.untouched()
    assert len(bystander.made.refusals) == 1


async def test_an_answer_survives_a_body_that_nobody_reads(bystander: Bystander) -> None:
    async with connected(bystander.made) as raw:
        raw.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n" + bytes(8_000_000))
        assert (await raw.head()).startswith("HTTP/1.1 413 ")
        await bystander.untouched()


@pytest.mark.parametrize("sent", [b"", b"GET /v1/tun", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf"])
async def test_half_a_request_is_closed_at_the_deadline(sent: bytes) -> None:
    async with tower(deadline=0.1) as made, connected(made) as raw:
        raw.write(sent)
        answer = await raw.rest()
        assert answer.startswith(b"HTTP/1.1 408 ") == bool(sent)
        refusal = await made.refusal()
        assert (refusal.stage, refusal.code) == ("http", Code.TIMEOUT)


@pytest.mark.parametrize("size", [0, 1, 100])
async def test_half_a_tls_hello_is_closed_at_the_deadline(size: int, contexts: Any) -> None:
    async with tower(*contexts, deadline=0.1) as made:
        reader, writer = await asyncio.open_connection(*made.address)
        writer.write((b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200))[:size])
        async with asyncio.timeout(PATIENCE):
            assert await reader.read(-1) == b""
        writer.transport.abort()
        refusal = await made.refusal()
        assert (refusal.stage, refusal.code) == ("tls", Code.TIMEOUT)
        assert "no TLS handshake within 0.1 s" in refusal.text
        assert not made.listener._waiting


async def test_plain_http_on_the_tls_port_is_told_so_and_reported_as_garbage_is(contexts: Any) -> None:
    async with tower(*contexts) as made:
        server, _ = await made.pair(accepting(Echo()), instance="honest")
        for number, (sent, says) in enumerate(
            (
                (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "the_peer_sent_plain_HTTP_to_a_TLS_port"),
                (b"\x00" * 100, "what_the_peer_sent_is_not_TLS"),
            )
        ):
            reader, writer = await asyncio.open_connection(*made.address)
            writer.write(sent)
            async with asyncio.timeout(PATIENCE):
                answer = await reader.read(-1)
            assert answer == (PLAIN_HTTP_ANSWER if b"HTTP" in sent else b"")
            writer.transport.abort()
            refusal = await made.refusal(number + 1)
            assert (refusal.stage, refusal.code) == ("tls", Code.PROTOCOL)
            assert says in refusal.text.replace(" ", "_")
        assert not made.listener._waiting
        await server.open("kubernetes", Recorder())


@pytest.mark.parametrize("joined", [False, True])
async def test_who_asks_for_new_tls_keys_again_and_again_is_cut_off_at_once(contexts: Any, joined: bool) -> None:
    async with tower(*contexts, deadline=PATIENCE) as made:
        server, _ = await made.pair(accepting(Echo()), instance="honest")
        async with connected(made) as raw:
            if joined:
                await raw.join()
            ask_for_new_keys(raw.writer.get_extra_info("ssl_object"), 2000)
            raw.write(b"and more")
            if joined:
                lost = (await (await made.tunnels.get()).wait_closed()).text
            else:
                refusal = await made.refusal()
                assert (refusal.stage, refusal.code) == ("http", Code.PROTOCOL)
                lost = refusal.text
            assert "TLS records hold nothing" in lost
        assert not made.listener._waiting
        await server.open("kubernetes", Recorder())


async def test_connections_are_bounded_before_their_tls(contexts: Any) -> None:
    async with tower(*contexts, max_unauthenticated=2) as made:
        silent = [await asyncio.open_connection(*made.address) for _ in range(2)]
        reader, writer = await asyncio.open_connection(*made.address)
        assert await reader.read(-1) == BUSY_ALERT
        assert (await made.refusal()).code is Code.BUSY
        for _, one in (*silent, (reader, writer)):
            one.transport.abort()
        async with asyncio.timeout(PATIENCE):
            while made.listener._waiting:
                await asyncio.sleep(0.005)
        await made.dial()
        assert len(made.refusals) == 1, "who only looks at the port is not counted"


async def test_a_request_that_comes_with_the_last_flight_of_tls_is_answered(contexts: Any) -> None:
    async with tower(*contexts) as made:
        for _ in range(20):
            async with connected(made) as raw:
                raw.write(b"GET /v1/enrolment HTTP/1.1\r\nHost: tower\r\n\r\n")
                assert (await raw.head()).startswith("HTTP/1.1 200 OK")


async def test_a_peer_that_goes_in_the_middle_is_reported_and_a_probe_is_not() -> None:
    async with tower() as made:
        async with connected(made):
            pass
        async with connected(made) as raw:
            await raw.hello()
        refusal = await made.refusal()
        assert (refusal.stage, refusal.code) == ("handshake", Code.TUNNEL_LOST)
        assert refusal.hello is not None
        assert refusal.hello.cluster == "alpha"
        assert len(made.refusals) == 1


# ---- the handshake --------------------------------------------------------------------------------------------------


Act = Callable[[RawAgent], Any]


async def refused(bystander: Bystander, act: Act, *, code: Code, says: str, told: bool = True) -> Refusal:
    """What `act` does is refused: told to the peer, reported, and nobody else notices."""
    made = bystander.made
    before = made.tunnels.qsize()
    async with connected(made) as raw:
        await act(raw)
        if told:
            said = await raw.rejected()
            assert (said["code"], says in said["text"]) == (code, True), said
        refusal = await made.refusal()
        assert refusal.code is code
        assert says in refusal.text
        await bystander.untouched()
    assert made.tunnels.qsize() == before, "no tunnel came of it"
    assert len(made.refusals) == 1
    return refusal


@pytest.mark.slow
async def test_a_handshake_that_goes_silent_is_told_so_at_the_deadline() -> None:
    async with tower(deadline=1.0) as made, connected(made) as raw:
        await raw.hello()
        said = await raw.rejected()
        assert said["code"] == Code.TIMEOUT
        assert "no handshake within 1 s" in said["text"]
        assert (await made.refusal()).stage == "handshake"


async def test_a_wrong_signature_is_refused(bystander: Bystander) -> None:
    async def act(raw: RawAgent) -> None:
        proof = bytearray(raw.handshake.challenged(await raw.hello()))
        proof[-1] ^= 1
        raw.say(bytes(proof))

    refusal = await refused(bystander, act, code=Code.BAD_SIGNATURE, says="signature does not verify")
    assert refusal.stage == "handshake"


async def test_a_replayed_handshake_is_refused(bystander: Bystander) -> None:
    handshake = agent()
    async with connected(bystander.made, handshake) as first:
        recorded = handshake.challenged(await first.hello())
        first.say(recorded)
        heard = await first.hears()
        assert heard is not None
        assert heard[0] == FrameType.WELCOME
    tunnel = await asyncio.wait_for(bystander.made.tunnels.get(), PATIENCE)
    await tunnel.wait_closed()

    async def act(raw: RawAgent) -> None:
        raw.handshake = handshake
        await raw.hello()
        raw.say(recorded)

    await refused(bystander, act, code=Code.BAD_SIGNATURE, says="signature does not verify")


async def test_an_identity_of_another_cluster_is_refused(bystander: Bystander) -> None:
    async def act(raw: RawAgent) -> None:
        raw.handshake = agent(cluster="beta", claimed="alpha")
        raw.say(raw.handshake.challenged(await raw.hello()))

    refusal = await refused(bystander, act, code=Code.WRONG_CLUSTER, says="belongs to cluster beta")
    assert refusal.hello is not None
    assert refusal.hello.cluster == "alpha"


async def test_a_version_that_nobody_speaks_is_refused(bystander: Bystander) -> None:
    async def act(raw: RawAgent) -> None:
        await raw.upgrade()
        raw.say(encode(FrameType.HELLO, 0, json.dumps({"versions": [99]}).encode()))

    await refused(bystander, act, code=Code.VERSION, says="no version in common: this server speaks 1")


@pytest.mark.parametrize(
    ("frame", "code", "says"),
    [
        (encode(FrameType.PROOF, 0, b"{}"), Code.PROTOCOL, "type 34 in place of HELLO"),
        (encode(FrameType.OPEN, 2, b""), Code.PROTOCOL, "type 1 in place of HELLO"),
        (encode(FrameType.HELLO, 0, b"no json"), Code.PROTOCOL, "not JSON"),
        (HEADER.pack(FrameType.HELLO, 0, 0, 0, MAX_HANDSHAKE_BYTES + 1), Code.TOO_LARGE, "at most 16384"),
        (HEADER.pack(FrameType.HELLO, 0, 0, 0, 2**32 - 1), Code.TOO_LARGE, "at most 16384"),
        (HEADER.pack(FrameType.HELLO, 0, 7, 0, 0), Code.PROTOCOL, "reserved bits"),
    ],
)
async def test_a_first_frame_that_is_no_hello_is_refused(
    bystander: Bystander, frame: bytes, code: Code, says: str
) -> None:
    async def act(raw: RawAgent) -> None:
        await raw.upgrade()
        raw.say(frame)

    await refused(bystander, act, code=code, says=says)


@pytest.mark.parametrize("greeted", [False, True])
async def test_who_says_more_than_a_handshake_is_not_listened_to(bystander: Bystander, greeted: bool) -> None:
    async def act(raw: RawAgent) -> None:
        await (raw.hello() if greeted else raw.upgrade())
        for _ in range(MAX_SAID // 600 + 1):
            raw.write(b"\x8a\x80\0\0\0\0" * 100)  # pongs, which say nothing
        while await raw.hears() is not None:
            pass

    await refused(bystander, act, code=Code.TOO_LARGE, says="no handshake is done", told=False)


async def test_a_second_hello_is_refused(bystander: Bystander) -> None:
    async def act(raw: RawAgent) -> None:
        await raw.hello()
        raw.say(raw.handshake.hello())

    await refused(bystander, act, code=Code.PROTOCOL, says="a frame of type 32 out of place")


async def test_an_agent_that_refuses_the_server_is_reported_with_its_words(bystander: Bystander) -> None:
    async def act(raw: RawAgent) -> None:
        await raw.hello()
        body = json.dumps({"code": int(Code.UNTRUSTED), "text": "not my server"}).encode()
        raw.say(encode(FrameType.REJECT, 0, body))
        assert await raw.hears() is None

    await refused(bystander, act, code=Code.UNTRUSTED, says="not my server", told=False)


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"\x82\x01x", 1002), (b"\xc2\x80\0\0\0\0", 1002), (b"\x81\x81\0\0\0\0x", 1003)],
    ids=["unmasked", "reserved bits", "text"],
)
async def test_a_broken_websocket_is_closed_with_its_status(bystander: Bystander, sent: bytes, status: int) -> None:
    async def act(raw: RawAgent) -> None:
        await raw.upgrade()
        raw.write(sent)
        assert await raw.hears() is None
        assert raw.closed_with == status.to_bytes(2, "big")

    await refused(bystander, act, code=Code.TUNNEL_LOST, says="broke the WebSocket protocol", told=False)


async def test_the_loop_stays_awake_for_an_agent_and_for_no_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    awake = 0

    def give_way() -> None:
        nonlocal awake
        awake += 1

    async def ping(raw: RawAgent) -> None:
        raw.write(b"\x89\x80\0\0\0\0")
        async with asyncio.timeout(PATIENCE):
            while b"\x8a" not in await raw.reader.read(64):
                pass

    monkeypatch.setattr(os, "sched_yield", give_way)
    monkeypatch.setattr(busypoll, "POLL", 0.05)
    async with tower() as made, connected(made) as raw:
        challenge = await raw.hello()
        for _ in range(4 * PAYS):
            await ping(raw)
        assert awake == 0
        raw.say(raw.handshake.challenged(challenge))
        assert (await raw.hears() or (None,))[0] == FrameType.WELCOME
        async with asyncio.timeout(PATIENCE):
            while not awake:
                await ping(raw)


async def test_admission_has_the_last_word() -> None:
    async def authenticate(hello: Any, identity: Any, remote: str) -> Admission:
        raise HandshakeRejected(Code.REVOKED, "agent agent-1 was revoked", 30.0)

    async with tower(authenticate=authenticate) as made, connected(made) as raw:
        raw.say(raw.handshake.challenged(await raw.hello()))
        assert await raw.rejected() == {"code": Code.REVOKED, "text": "agent agent-1 was revoked", "retry_after": 30.0}
        assert (await made.refusal()).stage == "authenticate"


async def test_an_admission_that_fails_says_nothing_of_why(caplog: pytest.LogCaptureFixture) -> None:
    async def authenticate(hello: Any, identity: Any, remote: str) -> Admission:
        raise RuntimeError("the database is on fire")

    async with tower(authenticate=authenticate) as made, connected(made) as raw:
        raw.say(raw.handshake.challenged(await raw.hello()))
        said = await raw.rejected()
        assert said["code"] == Code.INTERNAL
        assert "fire" not in said["text"]
        assert "the database is on fire" in caplog.text


async def test_what_comes_between_proof_and_welcome_is_refused() -> None:
    going_on = asyncio.Event()

    async def authenticate(hello: Any, identity: Any, remote: str) -> Admission:
        await going_on.wait()
        return Admission("t")

    for early in (encode(FrameType.PING, 0, bytes(8)), b"half a frame"[:5]):
        going_on.clear()
        async with tower(authenticate=authenticate) as made, connected(made) as raw:
            raw.say(raw.handshake.challenged(await raw.hello()))
            raw.say(early)
            raw.write(b"\x89\x80\0\0\0\0")
            async with asyncio.timeout(PATIENCE):
                while made.refusals == [] and b"\x8a" not in await raw.reader.read(1):
                    pass
            going_on.set()
            refusal = await made.refusal()
            assert refusal.code is Code.PROTOCOL
            assert made.tunnels.empty()


async def test_an_agent_that_gives_up_before_it_is_welcomed_gets_no_tunnel() -> None:
    going_on = asyncio.Event()

    async def authenticate(hello: Any, identity: Any, remote: str) -> Admission:
        await going_on.wait()
        return Admission("t")

    async with tower(authenticate=authenticate) as made, connected(made) as raw:
        raw.say(raw.handshake.challenged(await raw.hello()))
        raw.say(encode_reason(FrameType.CLOSE, 0, Code.CANCELLED, "it waits no longer"))
        refusal = await made.refusal()
        going_on.set()
        assert (refusal.code, refusal.text) == (Code.CANCELLED, "it waits no longer")
        assert await raw.hears() is None
        assert made.tunnels.empty()


async def test_a_storm_is_turned_away_before_it_costs_anything() -> None:
    def admit(remote: str) -> None:
        raise HandshakeRejected(Code.BUSY, "too many handshakes now", 1.5)

    def never() -> Any:
        raise AssertionError("asked for credentials")

    async with tower(admit=admit, credentials=never) as made, connected(made) as raw:
        await raw.upgrade()
        raw.say(raw.handshake.hello())
        assert await raw.rejected() == {"code": Code.BUSY, "text": "too many handshakes now", "retry_after": 1.5}


async def test_connections_that_have_proven_nothing_are_bounded() -> None:
    async with tower(max_unauthenticated=3, deadline=30.0) as made:
        await made.dial(instance="before")
        async with connected(made) as one, connected(made) as two, connected(made) as three:
            for raw in (one, two, three):
                await raw.upgrade()
            async with connected(made) as fourth:
                assert (await fourth.rest()).startswith(b"HTTP/1.1 503 ")
                refusal = await made.refusal()
                assert refusal.code is Code.BUSY
                assert "too many connections" in refusal.text
            one.writer.transport.abort()
            await made.refusal(2)
            await made.dial(instance="after")


async def test_nothing_is_left_of_connections_that_came_to_nothing() -> None:
    async with tower(max_unauthenticated=10) as made:
        for number in range(300):
            async with connected(made) as raw:
                if number % 3:
                    await raw.upgrade()
                if number % 3 == 2:
                    raw.say(b"\xff" * 12)
        await made.refusal(200)
        assert not made.listener._waiting
        await made.dial()


async def test_what_their_tls_took_is_given_back_at_once(contexts: Any) -> None:
    async with tower(*contexts) as made:
        gc.collect()
        gc.disable()  # it comes late in a flood
        try:
            for number in range(30):
                reader, writer = await asyncio.open_connection(*made.address)
                writer.write((b"", b"\x16\x03\x01\x02\x00\x01", b"\x00" * 100)[number % 3])
                if number % 3 == 2:
                    assert await reader.read(-1) == b""
                writer.transport.abort()
                async with connected(made):
                    pass
            async with asyncio.timeout(PATIENCE):
                while made.listener._waiting:
                    await asyncio.sleep(0.005)
            assert not [each for each in gc.get_objects() if isinstance(each, TlsPump)]
        finally:
            gc.enable()


# ---- a proven agent that turns hostile ------------------------------------------------------------------------------


CLOSE_CASES: list[tuple[str, Callable[[], list[bytes]], Code, str]] = [
    ("unknown stream", lambda: [playbook.data(7)], Code.PROTOCOL, "never opened"),
    ("oversized", lambda: [HEADER.pack(FrameType.DATA, 0, 0, 1, 65537)], Code.TOO_LARGE, "at most 65536"),
    ("credit overrun", lambda: [playbook.data(1, bytes(KIB * 64))] * 5, Code.FLOW, "more than were granted"),
    ("unknown type", lambda: [HEADER.pack(77, 0, 0, 0, 0)], Code.PROTOCOL, "unknown type 77"),
    ("another hello", lambda: [encode(FrameType.HELLO, 0, b"{}")], Code.PROTOCOL, "unknown type 32"),
    ("ack of the future", lambda: [encode(FrameType.ACK, 0, U64.pack(2**60))], Code.PROTOCOL, "ACK of"),
]


@pytest.mark.parametrize(
    ("frames", "code", "says"), [case[1:] for case in CLOSE_CASES], ids=[case[0] for case in CLOSE_CASES]
)
async def test_a_broken_rule_closes_this_tunnel_with_a_code_and_no_other(
    bystander: Bystander, caplog: pytest.LogCaptureFixture, frames: Callable[[], list[bytes]], code: Code, says: str
) -> None:
    caplog.set_level(logging.WARNING)
    async with connected(bystander.made) as raw:
        await raw.join()
        tunnel = await bystander.made.tunnels.get()
        opening = asyncio.ensure_future(tunnel.open("kubernetes", Holds()))
        while (heard := await raw.hears()) and heard[0] != FrameType.OPEN:
            pass
        raw.say(playbook.ok(1))
        await opening
        for frame in frames():
            raw.say(frame)
        while (heard := await raw.hears()) and heard[0] != FrameType.CLOSE:
            pass
        assert heard is not None
        assert int.from_bytes(heard[1][:4], "big") == code
        assert says in heard[1][4:].decode()
        closed = await tunnel.wait_closed()
        assert (closed.code, closed.by_peer) == (code, False)
        assert "broke the protocol" in caplog.text
        assert tunnel.session.budget.used == 0
        await bystander.untouched()


class Holds(Recorder):
    """Reads nothing."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.pause_reading()


async def test_a_frame_that_is_cut_short_ends_with_its_link(bystander: Bystander) -> None:
    async with connected(bystander.made) as raw:
        await raw.join()
        tunnel = await bystander.made.tunnels.get()
        raw.say(playbook.data(1, b"x" * 100)[:50])
    closed = await tunnel.wait_closed()
    assert closed.code is Code.TUNNEL_LOST
    await bystander.untouched()


@pytest.mark.slow
async def test_a_hundred_thousand_opens_are_refused_one_by_one_or_cut_off(bystander: Bystander) -> None:
    async with connected(bystander.made) as raw:
        await raw.join()
        tunnel = await bystander.made.tunnels.get()
        for first in range(2, 200_002, 2000):
            raw.say(*(playbook.opens(stream) for stream in range(first, first + 2000, 2)))
            await asyncio.sleep(0)
            if tunnel.closed is not None:
                break
        answers = 0
        while (heard := await raw.hears()) and heard[0] != FrameType.CLOSE:
            answers += heard[0] == FrameType.OPEN_ERR
            if answers == 100_000:
                break
        assert answers == 100_000 or (tunnel.closed is not None and tunnel.closed.code is Code.FLOOD)
        assert tunnel.stream_count == 0
        await bystander.untouched()


async def test_opens_without_reading_the_answers_are_cut_off(bystander: Bystander) -> None:
    async with connected(bystander.made) as raw:
        await raw.join()
        tunnel = await bystander.made.tunnels.get()
        raw.reader._transport.pause_reading()
        for first in range(2, 2_000_002, 4000):
            if tunnel.closed is not None:
                break
            raw.say(*(playbook.opens(stream) for stream in range(first, first + 4000, 2)))
            await asyncio.sleep(0)
            await asyncio.wait_for(raw.writer.drain(), PATIENCE) if tunnel.closed is None else None
        closed = await asyncio.wait_for(tunnel.wait_closed(), PATIENCE)
        assert closed.code is Code.FLOOD
        await bystander.untouched()


async def test_a_tunnel_that_cannot_be_taken_over_is_closed() -> None:
    def on_tunnel(tunnel: Tunnel) -> None:
        raise RuntimeError("no room in the registry")

    async with tower(on_tunnel=on_tunnel) as made, connected(made) as raw:
        await raw.join()
        while (heard := await raw.hears()) and heard[0] != FrameType.CLOSE:
            pass
        assert heard is not None
        assert int.from_bytes(heard[1][:4], "big") == Code.INTERNAL


async def test_stopping_leaves_tunnels_to_their_owner_and_drops_the_rest() -> None:
    async with tower() as made:
        server, agent_end = await made.pair(accepting(Echo()))
        async with connected(made) as raw:
            await raw.upgrade()
            await made.listener.stop()
            assert await raw.hears() is None
        await server.ping()
        assert agent_end.closed is None
        with pytest.raises(OSError, match=r"."):
            await asyncio.open_connection(*made.address)


async def test_every_tunnel_takes_from_one_budget() -> None:
    process = Budget(2048 * KIB)
    async with tower(budget=process, limits=Limits()) as made:
        first, _ = await made.pair(accepting(Recorder(), Recorder(), Recorder()), instance="a")
        second, _ = await made.pair(accepting(Recorder()), instance="b")
        await first.open("kubernetes", Recorder())
        await second.open("kubernetes", Recorder())
        assert process.used == 512 * KIB
        await first.open("kubernetes", Recorder())
        assert process.used == 528 * KIB, "above a quarter only the reserve"
        first.close(Code.SHUTDOWN, "")
        assert process.used == 256 * KIB


# ---- many at once ---------------------------------------------------------------------------------------------------


async def test_a_backlog_is_taken_one_connection_a_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    turn = 0
    made_link = TunnelListener.link

    def counted(self: TunnelListener, *, private: bool, remote: str) -> ServerLink:
        taken.append(turn)
        return made_link(self, private=private, remote=remote)

    monkeypatch.setattr(TunnelListener, "link", counted)
    async with tower() as made:
        callers = [socket.create_connection(made.address) for _ in range(40)]
        try:
            async with asyncio.timeout(PATIENCE):
                while len(taken) < len(callers):
                    turn += 1
                    await asyncio.sleep(0)
        finally:
            for caller in callers:
                caller.close()
        assert max(Counter(taken).values()) <= 2, "whoever is served waits for the handshakes of all of them"


async def test_whoever_has_given_up_in_the_backlog_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    linked = []
    made_link = TunnelListener.link

    def counted(self: TunnelListener, *, private: bool, remote: str) -> ServerLink:
        linked.append(remote)
        return made_link(self, private=private, remote=remote)

    monkeypatch.setattr(TunnelListener, "link", counted)
    async with tower() as made:
        with socket.create_connection(made.address) as gone:
            gone.sendall(b"GET / HTTP/1.1\r\n")
        with socket.create_connection(made.address) as there:
            async with asyncio.timeout(PATIENCE):
                while not linked:
                    await asyncio.sleep(0.01)
            assert linked == ["{}:{}".format(*there.getsockname())]
        assert made.refusals == []
