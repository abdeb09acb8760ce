"""An open that waits for its answer: what the protocol behind it hears, and what whoever waits is told."""

from __future__ import annotations

import asyncio

import pytest

from protocol.aio.opening import opened
from protocol.aio.pipe import PipeEnd, pipe
from protocol.constants import Code
from protocol.errors import ProtocolError, StreamRefused, StreamReset, TunnelLost
from tests.waiting import PATIENCE

pytestmark = pytest.mark.asyncio


class Near(asyncio.Protocol):
    """Keeps what it hears."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.heard: list[object] = []
        self.fails = fails

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.heard.append("made")
        if self.fails is not None:
            raise self.fails

    def data_received(self, data: bytes) -> None:
        self.heard.append(bytes(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self.heard.append(exc)


class Peer:
    """Opens pipes, and answers when it is told to."""

    near: PipeEnd
    far: PipeEnd
    opening: asyncio.BaseProtocol

    def start(self, protocol: asyncio.BaseProtocol) -> PipeEnd:
        self.opening = protocol
        self.near, self.far = pipe(protocol, asyncio.Protocol())
        protocol.connection_made(self.near)
        return self.near

    def agree(self) -> None:
        self.opening.stream_accepted()  # type: ignore[attr-defined]


async def wait(peer: Peer, near: Near) -> asyncio.Task[PipeEnd]:
    task = asyncio.create_task(opened(peer.start, near, deadline=PATIENCE))
    await asyncio.sleep(0)
    return task


async def test_a_protocol_hears_of_its_stream_when_the_peer_has_agreed():
    peer, near = Peer(), Near()
    task = await wait(peer, near)
    assert near.heard == []
    peer.agree()
    assert near.heard == ["made"]
    assert await task is peer.near
    peer.far.write(b"data")
    assert near.heard == ["made", b"data"]
    peer.near.abort()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (StreamReset(Code.DIAL_FAILED, "nobody there"), StreamRefused),
        (StreamRefused(Code.FORBIDDEN, "not this one"), StreamRefused),
        (TunnelLost(Code.TUNNEL_LOST, "the tunnel ended"), TunnelLost),
    ],
)
async def test_of_a_stream_that_was_refused_only_whoever_waits_hears(error: ProtocolError, told: type[ProtocolError]):
    peer, near = Peer(), Near()
    task = await wait(peer, near)
    peer.near.cut(error)
    with pytest.raises(told) as caught:
        await task
    assert (caught.value.code, caught.value.text) == (error.code, error.text)
    assert near.heard == []


async def test_an_answer_that_does_not_come_cancels_the_open():
    peer, near = Peer(), Near()
    with pytest.raises(TimeoutError):
        await opened(peer.start, near, deadline=0.01)
    assert peer.near.is_closing()
    assert near.heard == []


async def test_a_protocol_that_fails_when_it_gets_its_stream_fails_the_open():
    peer, near = Peer(), Near(fails=ValueError("not today"))
    task = await wait(peer, near)
    with pytest.raises(ValueError, match="not today"):
        peer.agree()
    with pytest.raises(ValueError, match="not today"):
        await task
    assert peer.near.is_closing()
