"""`forward`: a WebSocket of the admin API joined to a raw stream of a declared service.

Binary messages are the bytes, both ways; an empty text message is the half-close. The WebSocket is accepted only when
the member has accepted the stream, so a refusal is an ordinary answer with its reason.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from certs.names import is_label
from daemon.faults import TowerError
from daemon.wirefault import wire_fault
from protocol.aio.stream import StreamTransport
from protocol.constants import Code
from protocol.errors import ProtocolError, StreamRefused
from tower_server.admin.services import Services
from tower_server.records import KUBERNETES

if TYPE_CHECKING:
    from tower_server.replicas.passing import PassedStream
    from tower_server.replicas.replicas import Way

QUEUE_HIGH: Final = 16  # messages that wait for a slow reader; each is at most one frame of 64 KiB
CALLER: Final = "admin"


async def forward(
    services: Services, websocket: WebSocket, cluster: str, service: str, *, refuse: Callable[[TowerError], Response]
) -> None:
    end = _End()
    try:
        stream = await _open(services, cluster, service, end)
    except TowerError as error:
        await websocket.send_denial_response(refuse(error))
        return
    try:
        await websocket.accept()
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(_to_stream(websocket, end, stream), name="forward-up")
            await _to_websocket(websocket, end)
            reading.cancel()
    except* WebSocketDisconnect:
        pass  # the person went away
    finally:
        stream.reset(Code.CANCELLED, "the forward has ended")
        if websocket.application_state is WebSocketState.CONNECTED:
            await websocket.close()


async def _open(services: Services, cluster: str, service: str, end: _End) -> StreamTransport | PassedStream:
    _, member = services.clusters.get(cluster)
    if not is_label(service):
        raise TowerError("TWR605", f"{service[:80]!r} cannot be the name of a service")
    tunnel = member.pick()
    way = services.replicas.elsewhere(member) if tunnel is None and services.replicas is not None else None
    if tunnel is None and way is None:
        raise TowerError(member.verdict.code or "TWR201", f"cluster {cluster}: {member.verdict.cause}")
    try:
        if tunnel is not None:
            return await tunnel.open(service, end, caller=CALLER)
        assert way is not None
        return await _open_elsewhere(way, service, end)
    except ProtocolError as error:
        code = wire_fault(error.code, "TWR310")
        code = "TWR310" if code == "TWR301" and service != KUBERNETES else code
        raise TowerError(code, f"cluster {cluster}, service {service}: {error.text}") from error
    except TimeoutError as error:
        raise TowerError("TWR310", f"cluster {cluster}, service {service}: no answer in time") from error


async def _open_elsewhere(way: Way, service: str, end: _End) -> PassedStream:
    """By the server that holds the tunnel; returns when the member has accepted it there."""
    stream = way.start_open(service, end, caller=CALLER, connection_id=secrets.token_hex(8))
    end.connection_made(stream)
    try:
        await end.accepted
    except BaseException:
        stream.reset(Code.CANCELLED, "the forward has ended")
        raise
    return stream


async def _to_stream(websocket: WebSocket, end: _End, stream: StreamTransport | PassedStream) -> None:
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect
        data = message.get("bytes")
        if data:
            stream.write(data)
            await end.writable.wait()
        elif message.get("text") == "":
            stream.write_eof()


async def _to_websocket(websocket: WebSocket, end: _End) -> None:
    while (data := await end.next()) is not None:
        if data:
            await websocket.send_bytes(data)
        else:
            await websocket.send_text("")


class _End(asyncio.Protocol):
    """The stream's callbacks as a bounded queue: bytes, b"" for the half-close, None for the end."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._stream: StreamTransport | PassedStream | None = None
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Of a stream by another server: that it stands, or why not."""
        self._paused = False
        self.writable = asyncio.Event()
        self.writable.set()

    async def next(self) -> bytes | None:
        data = await self._queue.get()
        if self._paused and self._queue.qsize() <= QUEUE_HIGH // 2 and self._stream is not None:
            self._paused = False
            self._stream.resume_reading()
        return data

    def connection_made(self, transport: asyncio.BaseTransport | PassedStream) -> None:
        self._stream = cast("StreamTransport", transport)

    def stream_accepted(self) -> None:
        if not self.accepted.done():
            self.accepted.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._queue.put_nowait(bytes(data))
        if self._queue.qsize() >= QUEUE_HIGH and not self._paused and self._stream is not None:
            self._paused = True
            self._stream.pause_reading()

    def eof_received(self) -> bool:
        self._queue.put_nowait(b"")
        return True

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.accepted.done():
            self.accepted.set_exception(exc or StreamRefused(Code.TUNNEL_LOST, "it ended before it was accepted"))
            self.accepted.exception()  # nobody may be waiting
        self.writable.set()
        self._queue.put_nowait(None)
