"""A member's apiserver for the ring: `python -m tests.loopback.backend FOLDER PORT`, a process of its own.

It decides who a caller is as an apiserver does (the connection's certificate first, then the bearer token, else 401),
writes every request's head and the certificate of its connection into FOLDER/requests.jsonl before it answers, and does
what the path says: `/watch` a line every `TICK` seconds for ever, `/hang` nothing, `/bytes/N` N bytes, `/cut` half an
answer, `/late` one after a second, `/echo` a protocol that says everything back (by an upgrade). `/api/v1/ticks` is a
resource of which a version comes into being every `TICK` seconds; `?watch=true&resourceVersion=N` tells those after N.
While FOLDER/unready exists, /readyz is 500. Tokens of the account are TOKEN and those that begin with it and a dot, but
for what FOLDER/revoked names.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

TICK = 0.05
TOKEN = "member-account-token-0123456789"
CHUNK = b"z" * 65536
FACTS: dict[str, Any] = {
    "/version": {"major": "1", "minor": "36", "gitVersion": "v1.36.0"},
    "/api/v1/namespaces/kube-system": {"kind": "Namespace", "metadata": {"name": "kube-system", "uid": "uid-1"}},
    "/api/v1/nodes": {"kind": "NodeList", "metadata": {}, "items": [{}]},
    "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews": {"status": {"allowed": True}},
}
Headers = list[tuple[str, str]]


class Backend:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count(1)
        self._records = (folder / "requests.jsonl").open("a", buffering=1)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, peer = next(self._numbers), writer.get_extra_info("peercert")
        shown = dict(pair for entry in peer["subject"] for pair in entry)["commonName"] if peer else None
        try:
            while True:
                raw = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = raw[:-4].split("\r\n")
                headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
                body = await self._body(reader, dict(headers))
                line = {"connection": number, "certificate": shown, "first": first, "headers": headers, "body": body}
                self._records.write(json.dumps(line) + "\n")
                await self._answer(reader, writer, first.split(" "), dict(headers), shown)
        except (OSError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # the agent hung up
        finally:
            writer.transport.abort()

    @staticmethod
    async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> str:
        if headers.get("transfer-encoding") == "chunked":
            whole = b""
            while size := int(await reader.readline(), 16):
                whole += (await reader.readexactly(size + 2))[:-2]
            while await reader.readline() != b"\r\n":
                pass
            return whole.decode("latin-1")
        return (await reader.readexactly(int(headers.get("content-length", "0")))).decode("latin-1")

    async def _answer(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        first: list[str],
        headers: dict[str, str],
        certificate: str | None,
    ) -> None:
        path = first[1].partition("?")[0]
        if certificate is None and not self._is_account(headers.get("authorization", "")):
            document = {"kind": "Status", "status": "Failure", "reason": "Unauthorized", "code": 401}
            await self._say(writer, "401 Unauthorized", document)
        elif path == "/readyz":
            unready = (self._folder / "unready").exists()
            await self._say(
                writer, "500 Internal Server Error" if unready else "200 OK", "no etcd" if unready else "ok"
            )
        elif path == "/watch":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            for tick in count():
                line = b'{"tick": %d, "at": %f}\n' % (tick, time.time())
                writer.write(b"%x\r\n%b\r\n" % (len(line), line))
                await writer.drain()
                await asyncio.sleep(TICK)
        elif path == "/late":
            await asyncio.sleep(1.0)
            await self._say(writer, "200 OK", {"kind": "Answer", "path": path})
        elif path == "/api/v1/ticks":
            await self._ticks(writer, first[1].partition("resourceVersion=")[2])
        elif path == "/hang":
            await reader.read()
        elif path == "/cut":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            await writer.drain()
            raise ConnectionResetError
        elif path.startswith("/bytes/"):
            size = int(path.removeprefix("/bytes/"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            for start in range(0, size, len(CHUNK)):
                writer.write(CHUNK[: size - start])
                await writer.drain()
                await asyncio.sleep(0)  # drain() alone never lets the loop in, nor tells of the end, of a lost TLS peer
        elif path == "/echo" and headers.get("upgrade"):
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            raise ConnectionResetError
        else:
            await self._say(writer, "200 OK", FACTS.get(path, {"kind": "Answer", "path": path}))

    def _is_account(self, authorization: str) -> bool:
        token, revoked = authorization.removeprefix("Bearer "), self._folder / "revoked"
        known = token == TOKEN or token.startswith(f"{TOKEN}.")
        return known and not (revoked.exists() and token in revoked.read_text().split())

    @staticmethod
    async def _ticks(writer: asyncio.StreamWriter, after: str) -> None:
        version = int(after) if after else int(time.time() / TICK)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            version += 1
            await asyncio.sleep(max(0.0, version * TICK - time.time()))
            event = b'{"type": "MODIFIED", "object": {"metadata": {"resourceVersion": "%d"}}}\n' % version
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()

    @staticmethod
    async def _say(writer: asyncio.StreamWriter, status: str, document: Any) -> None:
        body = document.encode() if isinstance(document, str) else json.dumps(document).encode()
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()


async def main(folder: Path, port: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "apiserver.crt", folder / "apiserver.key")
    context.load_verify_locations(folder / "ca.crt")
    context.verify_mode = ssl.CERT_OPTIONAL
    handle: Callable[..., Awaitable[None]] = Backend(folder).handle
    server = await asyncio.start_server(handle, "127.0.0.1", port, ssl=context, backlog=1024)
    (folder / "listening").touch()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
