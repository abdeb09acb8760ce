"""Each hop of the way to a tunnel that can break is a DialError that names it; what came before is let go of."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from protocol.aio.hops import DialError, Hop
from protocol.aio.proxydial import DialTarget
from protocol.aio.wsframes import Op, WebSocketDecoder, frame
from protocol.constants import Code, FrameType
from protocol.defaults import MAX_HEAD_BYTES
from protocol.errors import HandshakeRejected
from protocol.frames import FrameDecoder, decode_reason, encode
from protocol.handshake import ServerHandshake, reject
from tests.protocol import playbook
from tests.protocol.aio.tunnels import KEY, PATIENCE, Echo, Recorder, Tower, accepting, agent, tower
from tests.protocol.handshakes import signer, verifier

pytestmark = pytest.mark.asyncio

Serve = Callable[["RawTower"], Awaitable[None]]


class RawTower:
    """A tower server made by hand, one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.handshake = ServerHandshake(
            chain=[b"tower"], sign=signer(KEY), verify=verifier(KEY), nonce=bytes(32), features=["ack"]
        )
        self._decoder = WebSocketDecoder(expect_mask=True)
        self._frames = FrameDecoder()
        self._got: list[tuple[int, bytes]] = []

    async def head(self) -> str:
        return (await self.reader.readuntil(b"\r\n\r\n")).decode()

    def accepted(self, head: str, subprotocol: str | None = "tower.v1") -> bytes:
        (key,) = [line.split(": ")[1] for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key:")]
        magic = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()
        chosen = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol else ""
        return (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {magic}\r\n{chosen}\r\n"
        ).encode()

    async def upgrade(self) -> None:
        self.writer.write(self.accepted(await self.head()))

    def say(self, *frames: bytes) -> None:
        self.writer.write(frame(Op.BINARY, b"".join(frames), None))

    async def hears(self) -> tuple[int, bytes]:
        while not self._got:
            data = await self.reader.read(65536)
            if not data:
                raise EOFError
            for op, payload in self._decoder.feed(memoryview(data)):
                if op is Op.BINARY:
                    self._got += [(kind, bytes(body)) for kind, _, _, body in self._frames.feed(payload)]
        return self._got.pop(0)

    async def challenge(self) -> bytes:
        """Up to the payload of PROOF."""
        await self.upgrade()
        self.say(self.handshake.greeted((await self.hears())[1]))
        return (await self.hears())[1]


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[DialTarget]:
    done: asyncio.Queue[BaseException | None] = asyncio.Queue()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await serve(RawTower(reader, writer))
                while await reader.read(65536):
                    pass
        except (OSError, EOFError):
            pass  # the agent has left, as it should
        finally:
            writer.transport.abort()
            done.put_nowait(None)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield DialTarget(host="127.0.0.1", port=server.sockets[0].getsockname()[1], ssl_context=None, proxy_env=False)
        async with asyncio.timeout(PATIENCE):
            await done.get()
    finally:
        server.close()
        await server.wait_closed()


async def fails(serve: Serve, **more: Any) -> DialError:
    async with serving(serve) as target:
        made = Tower(None, ("", 0), asyncio.Queue(), [], asyncio.Event(), None)  # type: ignore[arg-type]
        with pytest.raises(DialError) as failed:
            await made.dial(target=target, **more)
    return failed.value


def answers(*sent: bytes) -> Serve:
    async def serve(raw: RawTower) -> None:
        await raw.head()
        raw.writer.write(b"".join(sent))
        await raw.writer.drain()

    return serve


async def test_the_hops_of_a_good_way_are_noted(contexts: Any) -> None:
    hops: list[Hop] = []
    async with tower(*contexts) as made:
        agent_end = await made.dial(on_hop=hops.append)
        assert [hop.name for hop in hops][:2] == ["dns", "tcp"]
        assert hops[-1].name == "handshake"
        assert hops[-1].evidence == "server tower-0, tunnel alpha-agent-1"
        assert all(hop.seconds >= 0 for hop in hops)
        assert agent_end.id == "alpha-agent-1"
        assert agent_end.features == {"ack"}
        assert agent_end.peer.name == "tower-0"


# ---- the upgrade ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "code", "retry_after", "says"),
    [
        (
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\nno such\n",
            404,
            None,
            "the server answered 404 Not Found to the upgrade: no such",
        ),
        (b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n", 503, 7.0, "answered 503 Busy"),
        (b"HTTP/1.0 502 Bad Gateway\r\nContent-Length: 100000\r\n\r\n" + b"x" * 500, 502, None, "502 Bad Gateway"),
        (b"HTTP/1.1 407 Proxy\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 407, None, "407 Proxy"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>\x1b[2J", 200, None, "<html>?[2J"),
        (
            b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere/\r\nServer: box/1\r\nContent-Length: 0\r\n\r\n",
            302,
            None,
            "302 Found to the upgrade (Location: https://elsewhere/, Server: box/1)",
        ),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", None, None, "no WebSocket there"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", None, None, "no HTTP there: it says b'SSH-2.0"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (MAX_HEAD_BYTES + 1), None, None, "more than 65536 bytes"),
        (b"HTTP/1.9 9 ?\r\n\r\n", None, None, "no HTTP there"),
    ],
    ids=lambda value: str(value)[:25],
)
async def test_another_answer_than_an_upgrade(
    answer: bytes, code: int | None, retry_after: float | None, says: str
) -> None:
    failed = await fails(answers(answer))
    assert failed.hop == "http"
    assert says in failed.text
    assert (failed.code, failed.retry_after) == (code, retry_after)


async def test_an_answer_that_is_cut_short_is_still_evidence() -> None:
    async def serve(raw: RawTower) -> None:
        await raw.head()
        raw.writer.write(b"HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\nonly this")
        raw.writer.write_eof()

    failed = await fails(serve)
    assert (failed.hop, failed.code) == ("http", 500)
    assert "only this" in failed.text


@pytest.mark.parametrize("end", ["reset", "silence"])
async def test_an_answer_whose_body_never_comes_is_still_evidence(end: str) -> None:
    async def serve(raw: RawTower) -> None:
        await raw.head()
        raw.writer.write(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 100\r\n\r\n")
        if end == "reset":
            reset = struct.pack("ii", 1, 0)
            raw.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            raw.writer.close()
        else:
            await raw.reader.read()

    failed = await fails(serve, deadline=0.5 if end == "silence" else PATIENCE)
    assert (failed.hop, failed.code, failed.retry_after) == ("http", 503, 7.0)
    assert failed.text == "the server answered 503 Busy to the upgrade"


async def test_a_server_that_hangs_up_at_once() -> None:
    async def serve(raw: RawTower) -> None:
        await raw.head()
        raw.writer.write_eof()

    failed = await fails(serve)
    assert failed.hop == "http"
    assert "closed the connection before it answered the upgrade" in failed.text


@pytest.mark.parametrize("subprotocol", [None, "kubesphere-v1"])
async def test_a_server_that_speaks_something_else(subprotocol: str | None) -> None:
    async def serve(raw: RawTower) -> None:
        raw.writer.write(raw.accepted(await raw.head(), subprotocol))

    failed = await fails(serve)
    assert failed.hop == "subprotocol"
    assert "did not agree to tower.v1" in failed.text


@pytest.mark.parametrize("upgraded", [False, True])
async def test_a_silent_server_ends_at_the_deadline_and_says_where(upgraded: bool) -> None:
    async def serve(raw: RawTower) -> None:
        if upgraded:
            await raw.upgrade()

    failed = await fails(serve, deadline=0.1)
    assert failed.hop == ("handshake" if upgraded else "http")
    step = "handshake" if upgraded else "WebSocket upgrade"
    assert f"did not complete the {step} within 0.1 s" in failed.text


# ---- the handshake --------------------------------------------------------------------------------------------------


async def test_a_rejection_names_reason_and_when_to_come_back() -> None:
    async def serve(raw: RawTower) -> None:
        await raw.upgrade()
        await raw.hears()
        raw.say(reject(Code.BUSY, "too many handshakes now", 4.0))

    failed = await fails(serve)
    assert (failed.hop, failed.code, failed.retry_after) == ("handshake", Code.BUSY, 4.0)
    assert failed.text == "the server refused: too many handshakes now"


async def test_a_rejection_after_the_proof() -> None:
    async def authenticate(*_: Any) -> Any:
        raise HandshakeRejected(Code.REVOKED, "agent agent-1 was revoked")

    async with tower(authenticate=authenticate) as made:
        with pytest.raises(DialError) as failed:
            await made.dial()
        assert (failed.value.code, failed.value.retry_after) == (Code.REVOKED, None)


async def test_a_server_that_cannot_prove_itself_is_told_so() -> None:
    heard: list[dict[str, Any]] = []

    async def serve(raw: RawTower) -> None:
        raw.handshake._sign = signer(b"another key")
        await raw.upgrade()
        raw.say(raw.handshake.greeted((await raw.hears())[1]))
        kind, payload = await raw.hears()
        assert kind == FrameType.REJECT
        heard.append(json.loads(payload))

    failed = await fails(serve)
    assert (failed.hop, failed.code) == ("handshake", Code.BAD_SIGNATURE)
    assert failed.text == "the transcript's signature does not verify"
    assert heard[0]["code"] == Code.BAD_SIGNATURE


@pytest.mark.parametrize(
    ("sent", "code", "says"),
    [
        (encode(FrameType.WELCOME, 0, b'{"tunnel": "x"}'), Code.PROTOCOL, "type 35 in place of CHALLENGE"),
        (encode(FrameType.CHALLENGE, 0, b"short"), Code.PROTOCOL, "lengths do not fit"),
        (b"\x21\0\0\0\0\0\0\0\0\1\0\0", Code.TOO_LARGE, "at most 16384"),
    ],
)
async def test_a_server_that_skips_its_proof_gets_nothing(sent: bytes, code: Code, says: str) -> None:
    async def serve(raw: RawTower) -> None:
        await raw.upgrade()
        await raw.hears()
        raw.say(sent)

    failed = await fails(serve)
    assert (failed.hop, failed.code) == ("handshake", code)
    assert says in failed.text


@pytest.mark.parametrize(
    ("proof", "sent", "kind", "code"),
    [
        (False, encode(FrameType.CHALLENGE, 0, b"short"), FrameType.REJECT, Code.PROTOCOL),
        (False, b"\x21\0\0\0\0\0\0\0\0\1\0\0", FrameType.REJECT, Code.TOO_LARGE),
        (True, encode(FrameType.WELCOME, 0, b"{}"), FrameType.CLOSE, Code.PROTOCOL),
        (True, b"\x23\0\0\0\0\0\0\0\0\1\0\0", FrameType.CLOSE, Code.TOO_LARGE),
    ],
)
async def test_a_server_that_breaks_the_handshake_is_told_why(
    proof: bool, sent: bytes, kind: FrameType, code: Code
) -> None:
    """By REJECT in place of PROOF. Behind PROOF by CLOSE: the server may hold a tunnel by then, where REJECT is none of
    the frames that it knows."""
    heard: list[tuple[int, int]] = []

    async def serve(raw: RawTower) -> None:
        if proof:
            await raw.challenge()
        else:
            await raw.upgrade()
            await raw.hears()
        raw.say(sent)
        kind, payload = await raw.hears()
        rejected = kind == FrameType.REJECT
        heard.append((kind, json.loads(payload)["code"] if rejected else decode_reason(memoryview(payload))[0]))

    failed = await fails(serve)
    assert (failed.hop, failed.code) == ("handshake", code)
    assert heard == [(kind, code)]


@pytest.mark.parametrize("spoke", [False, True])
async def test_a_server_that_leaves_in_the_middle(spoke: bool) -> None:
    async def serve(raw: RawTower) -> None:
        await (raw.challenge() if spoke else raw.upgrade())
        raw.writer.transport.abort()

    failed = await fails(serve)
    assert failed.hop == "handshake"
    assert ("something on the way lets that through" in failed.text) is not spoke


@pytest.mark.parametrize("step", [1, 7, 10_000])
async def test_what_follows_welcome_at_once_is_the_tunnels(step: int) -> None:
    """The OPEN of the control stream may come in the same segment as WELCOME, and be cut anywhere."""

    async def serve(raw: RawTower) -> None:
        raw.handshake.proven(await raw.challenge())
        together = raw.handshake.welcome("t-1") + playbook.opens(1) + playbook.data(1, b"first words")
        raw.say(*(together[:5],))
        whole = b"".join(frame(Op.BINARY, together[at : at + step], None) for at in range(5, len(together), step))
        raw.writer.write(whole)
        assert (await raw.hears())[0] in (FrameType.PING, FrameType.OPEN_OK)

    far = Recorder()
    made = Tower(None, ("", 0), asyncio.Queue(), [], asyncio.Event(), None)  # type: ignore[arg-type]
    async with serving(serve) as target:
        tunnel = await made.dial(accepting(far), target=target)
        assert await far.bytes(11) == b"first words"
        tunnel.close(Code.SHUTDOWN, "")


async def test_what_follows_the_upgrade_at_once_is_the_links() -> None:
    async def serve(raw: RawTower) -> None:
        raw.writer.write(raw.accepted(await raw.head()) + frame(Op.BINARY, reject(Code.BUSY, "not now"), None))

    failed = await fails(serve)
    assert (failed.hop, failed.code) == ("handshake", Code.BUSY)


async def test_a_dial_that_is_cancelled_leaves_nothing() -> None:
    started = asyncio.Event()

    async def serve(raw: RawTower) -> None:
        await raw.upgrade()
        started.set()

    made = Tower(None, ("", 0), asyncio.Queue(), [], asyncio.Event(), None)  # type: ignore[arg-type]
    async with serving(serve) as target:
        dialling = asyncio.ensure_future(made.dial(target=target))
        await started.wait()
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling


async def test_a_handshake_is_for_one_dial_and_a_new_one_works() -> None:
    async with tower() as made:
        for _ in range(3):
            tunnel = await made.dial(accepting(Echo()), handshake=agent())
            server = await made.tunnels.get()
            tunnel.close(Code.SHUTDOWN, "")
            assert (await server.wait_closed()).by_peer
