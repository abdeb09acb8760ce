"""An apiserver's end of a socket, played by the test: what a real one does only when it is ill."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from protocol.aio.hops import DialError

PATIENCE = 20.0


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any


@dataclass(frozen=True)
class Answer:
    """`body` as JSON, bytes as they are; pieces are sent chunk by chunk, `hang` then keeps the connection silent."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: tuple[bytes, ...] | None = None
    hang: bool = False
    cut: bool = False


Respond = Callable[[Request], Answer | Awaitable[Answer]]


def status(code: int, word: str, text: str = "told", **details: Any) -> Answer:
    body = {"kind": "Status", "status": "Failure", "code": code, "reason": word, "message": text, "details": details}
    return Answer(code, body)


def event(kind: str, body: Mapping[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": body}).encode() + b"\n"


def thing(name: str, version: int, uid: str = "u", **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": uid, "resourceVersion": str(version)}, **more}


class FakeApi:
    """Also the client's Endpoint: the dial is the test's too."""

    def __init__(self, respond: Respond) -> None:
        self.respond = respond
        self.requests: list[Request] = []
        self.connections = 0
        self.port = 0
        self.tokens = ["first"]
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return "fake:6443"

    async def connect(self, factory: Any) -> Any:
        try:
            return await asyncio.get_running_loop().create_connection(factory, "127.0.0.1", self.port)
        except OSError as error:
            raise DialError("tcp", f"fake:6443: {error.strerror}") from error

    async def fresh_token(self) -> str | None:
        return self.tokens[0]

    def forget_token(self) -> None:
        if len(self.tokens) > 1:
            self.tokens.pop(0)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[FakeApi]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client hung up, or the test is over
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        parts = urlsplit(target)
        request = Request(method, parts.path, dict(parse_qsl(parts.query)), headers, json.loads(body) if body else None)
        self.requests.append(request)
        found = self.respond(request)
        answer = found if isinstance(found, Answer) else await found
        if answer.cut:
            return False
        await self._send(answer, writer)
        if answer.hang:
            await reader.read()
        return not answer.hang

    @staticmethod
    async def _send(answer: Answer, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {answer.status} X", *(f"{name}: {value}" for name, value in answer.headers.items())]
        if answer.pieces is None:
            raw = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            lines.append(f"Content-Length: {len(raw)}")
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + raw)
            await writer.drain()
            return
        lines.append("Transfer-Encoding: chunked")
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        for piece in answer.pieces:
            writer.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
            await writer.drain()
        if not answer.hang:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
