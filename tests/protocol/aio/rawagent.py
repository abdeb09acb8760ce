"""An agent made by hand, for saying at the tunnel port what no agent would say."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from protocol.aio.wsframes import NO_MASK, Op, WebSocketDecoder, frame
from protocol.constants import FrameType
from protocol.frames import FrameDecoder
from protocol.handshake import AgentHandshake
from tests.protocol.aio.tunnels import PATIENCE, Tower, agent

UPGRADE = {
    "Host": "tower",
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Protocol": "tower.v1",
}


def request(path: str = "/v1/tunnel", method: str = "GET", **headers: str | None) -> bytes:
    """An upgrade; a keyword replaces a field (underscores for dashes), None drops it."""
    changed = {key.replace("_", "-"): value for key, value in headers.items()}
    fields = {**UPGRADE, **changed}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value is not None)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class RawAgent:
    """One connection to the tunnel port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.handshake = agent()
        self._decoder = WebSocketDecoder(expect_mask=False)
        self._frames = FrameDecoder()
        self._got: list[tuple[int, bytes]] = []
        self.closed_with: bytes | None = None

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    def say(self, *frames: bytes) -> None:
        """Frames in one binary message."""
        self.writer.write(frame(Op.BINARY, b"".join(frames), NO_MASK))

    async def head(self) -> str:
        """The answer's head."""
        async with asyncio.timeout(PATIENCE):
            return (await self.reader.readuntil(b"\r\n\r\n")).decode()

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self.reader.read(-1)
            except ConnectionResetError:
                return b""

    async def hears(self) -> tuple[int, bytes] | None:
        """The next frame; None when the server has closed."""
        async with asyncio.timeout(PATIENCE):
            while not self._got:
                try:
                    data = await self.reader.read(65536)
                except ConnectionResetError:
                    return None
                if not data:
                    return None
                for op, payload in self._decoder.feed(memoryview(data)):
                    if op is Op.CLOSE:
                        self.closed_with = bytes(payload)
                    elif op is Op.BINARY:
                        self._got += [(kind, bytes(body)) for kind, _, _, body in self._frames.feed(payload)]
        return self._got.pop(0)

    async def upgrade(self) -> None:
        self.write(request())
        assert " 101 " in await self.head()

    async def hello(self) -> bytes:
        """Upgrade, HELLO; the payload of CHALLENGE."""
        await self.upgrade()
        self.say(self.handshake.hello())
        heard = await self.hears()
        assert heard is not None
        assert heard[0] == FrameType.CHALLENGE
        return heard[1]

    async def join(self) -> None:
        """The whole handshake."""
        self.say(self.handshake.challenged(await self.hello()))
        heard = await self.hears()
        assert heard is not None
        assert heard[0] == FrameType.WELCOME

    async def rejected(self) -> dict[str, Any]:
        """What a REJECT says; and the connection is closed after it."""
        heard = await self.hears()
        assert heard is not None
        assert heard[0] == FrameType.REJECT
        assert await self.hears() is None
        return dict(json.loads(heard[1]))


@asynccontextmanager
async def connected(
    made: Tower, handshake: AgentHandshake | None = None, context: ssl.SSLContext | None = None
) -> AsyncIterator[RawAgent]:
    host, port = made.address
    reader, writer = await asyncio.open_connection(host, port, ssl=context or made.client_context)
    raw = RawAgent(reader, writer)
    raw.handshake = handshake or raw.handshake
    try:
        yield raw
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)
