"""A real apiserver behind a middle that makes it ill: answers of its own, silence, watches in pieces."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.controlplane import ControlPlane
from tests.lab.pki import ClusterCA, write_kubeconfig

PIECE = 7  # bytes of a watch at a time
REASONS = {
    409: ("AlreadyExists", "Conflict"),
    410: ("Expired", "Gone"),
    429: ("TooManyRequests", "Too Many Requests"),
    500: ("InternalError", "Internal Server Error"),
}


@dataclass(frozen=True)
class Asked:
    method: str
    target: str
    body: bytes

    @property
    def watch(self) -> bool:
        return "watch=" in self.target


SILENT = -1
Rule = Callable[[Asked], int]
"""The status that a request is answered with in place of the apiserver's answer; 0: the apiserver's; SILENT: none."""


def well(_asked: Asked) -> int:
    return 0


def silence(_asked: Asked) -> int:
    """To everybody, and watches that are open say nothing either."""
    return SILENT


class IllApiserver:
    def __init__(self, plane: ControlPlane, ca: ClusterCA, folder: Path) -> None:
        self.rule: Rule = well
        self.told: dict[int, int] = {}
        """How many requests were answered with each status that is not the apiserver's."""
        self.pieces = 0
        client = plane.ca.client("ill-upstream", "kubernetes-admin", ["system:masters"])
        self._upstream = ssl.create_default_context(cadata=plane.ca.pem.decode())
        self._upstream.load_cert_chain(client.certificate, client.key)
        pair = ca.server("ill", ["127.0.0.1"])
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(pair.certificate, pair.key)
        self._plane, self._ca, self._folder = plane, ca, folder
        self.tasks: set[asyncio.Task[None]] = set()
        self.kubeconfig = folder / "ill.kubeconfig"

    def listens(self, port: int) -> None:
        server = f"https://127.0.0.1:{port}"
        write_kubeconfig(self.kubeconfig, name="ill", server=server, ca=self._ca.pem, token="anybody")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            await self._exchange(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # either end hung up, or the test is over
        finally:
            writer.transport.abort()
            self.tasks.discard(task)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines[1:])}
        asked = Asked(*lines[0].split(" ")[:2], await reader.readexactly(int(headers.get("content-length", "0"))))
        status = self.rule(asked)
        if status:
            self.told[status] = self.told.get(status, 0) + 1
        if status == SILENT:
            await asyncio.sleep(3600)
        elif status:
            writer.write(_status(status))
            await writer.drain()
        else:
            kept = [line for line in lines if not line.lower().startswith(("authorization:", "connection:"))]
            await self._relay("\r\n".join([*kept, "Connection: close", "", ""]).encode() + asked.body, asked, writer)

    async def _relay(self, request: bytes, asked: Asked, writer: asyncio.StreamWriter) -> None:
        host, port = self._plane.address, self._plane.ports.apiserver
        upstream, away = await asyncio.open_connection(host, port, ssl=self._upstream)
        try:
            away.write(request)
            while data := await upstream.read(65536):
                while self.rule is silence:
                    await asyncio.sleep(0.05)
                size = PIECE if asked.watch and len(data) < 20_000 else len(data)
                for start in range(0, len(data), size):
                    self.pieces += asked.watch
                    writer.write(data[start : start + size])
                    await writer.drain()
                    await asyncio.sleep(0)
        finally:
            away.transport.abort()


def _status(code: int) -> bytes:
    reason, words = REASONS[code]
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
    body = json.dumps({**status, "message": "the apiserver is ill"}).encode()
    more = "Retry-After: 1\r\n" if code == 429 else ""
    head = f"HTTP/1.1 {code} {words}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}"
    return f"{head}Connection: close\r\n\r\n".encode() + body


@asynccontextmanager
async def ill_apiserver(plane: ControlPlane, folder: Path) -> AsyncIterator[IllApiserver]:
    folder.mkdir(exist_ok=True)
    made = IllApiserver(plane, ClusterCA(folder, "ill-ca"), folder)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=made.context)
    made.listens(server.sockets[0].getsockname()[1])
    try:
        yield made
    finally:
        server.close()
        for task in list(made.tasks):
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await server.wait_closed()


@contextlib.contextmanager
def ill_apiserver_beside(plane: ControlPlane, folder: Path) -> Iterator[IllApiserver]:
    """The same for tests of processes, on a loop in a thread of its own."""
    made: queue.Queue[tuple[IllApiserver, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def run() -> None:
        async with ill_apiserver(plane, folder) as ill:
            over = asyncio.Event()
            made.put((ill, asyncio.get_running_loop(), over))
            await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),), name="ill apiserver")
    thread.start()
    ill, loop, over = made.get(timeout=30)
    try:
        yield ill
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(30)
