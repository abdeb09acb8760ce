"""One connection to a port of a pod, by the apiserver: Kubernetes' port-forward over a WebSocket (`v4.channel`).

Two channels: 0 carries the bytes, 1 says what went wrong at the pod's end; the first message of each is the port, in
two bytes. There is no half-close in it, which HTTP does not need here.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from daemon.faults import TowerError
from daemon.kube.access import Access
from daemon.kube.resources import Resource
from protocol.jsontext import parse_json

PODS: Final = Resource("", "v1", "pods", "Pod")
CHANNELS: Final = Subprotocol("v4.channel.k8s.io")
DATA: Final = 0
ERROR: Final = 1
READ_BYTES: Final = 32 * 1024
MAX_MESSAGE: Final = 4 * 1024 * 1024
MAX_QUEUE: Final = 4  # messages kept for a local reader that is slower than the pod


class PortForward:
    """To one port of one pod; `relay` a local connection over it."""

    def __init__(self, access: Access, *, namespace: str, pod: str, port: int) -> None:
        self._access = access
        self._namespace = namespace
        self._pod = pod
        self._port = port
        self.fault: TowerError | None = None
        """Why the last connection failed."""

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, timeout: float) -> None:
        """Until either end closes. What fails is kept as `fault`, and the local connection closed."""
        try:
            async with await self._open(timeout) as socket:
                up = asyncio.create_task(_up(reader, socket), name="portforward-up")
                down = asyncio.create_task(self._down(writer, socket), name="portforward-down")
                try:
                    await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in (up, down):
                        task.cancel()
                    ended = await asyncio.gather(up, down, return_exceptions=True)
            for error in ended:
                if isinstance(error, TowerError):
                    self.fault = error
        except TowerError as error:
            self.fault = error
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _open(self, timeout: float) -> ClientConnection:
        access = self._access
        token = await access.fresh_token()
        path = PODS.path(self._namespace, self._pod, "portforward")
        try:
            return await connect(
                f"wss://{access.address}{path}?ports={self._port}",
                ssl=access.own_context(),
                server_hostname=access.server_name or access.host,
                additional_headers={} if token is None else {"Authorization": f"Bearer {token}"},
                subprotocols=[CHANNELS],
                compression=None,
                proxy=None,
                open_timeout=timeout,
                ping_interval=None,
                close_timeout=1.0,
                max_size=MAX_MESSAGE,
                max_queue=MAX_QUEUE,
            )
        except InvalidStatus as error:
            raise self._refused(error.response.status_code, bytes(error.response.body or b"")) from error
        except (OSError, InvalidHandshake, TimeoutError) as error:
            why = str(error) or type(error).__name__
            raise TowerError("TWR616", f"the apiserver {access.address} opens no port-forward: {why}") from error

    def _refused(self, status: int, body: bytes) -> TowerError:
        try:
            said = str(parse_json(body)["message"])
        except (ValueError, KeyError, TypeError):
            said = body[:200].decode("utf-8", "replace").strip() or f"HTTP {status}"
        mend = None
        if status in (401, 403):
            mend = f"have a cluster admin bind you to the Role tower-operator or tower-viewer of {self._namespace}"
        return TowerError("TWR616", f"port-forward to pod {self._pod} in {self._namespace}: {said}", mend=mend)

    async def _down(self, writer: asyncio.StreamWriter, socket: ClientConnection) -> None:
        begun = set()
        try:
            async for message in socket:
                if not isinstance(message, bytes) or not message:
                    continue
                channel, data = message[0], message[1:]
                if channel not in begun:  # the port's number
                    begun.add(channel)
                elif channel == DATA:
                    writer.write(data)
                    await writer.drain()
                elif channel == ERROR and data:
                    said = data.decode("utf-8", "replace").strip()[:300]
                    raise TowerError("TWR616", f"pod {self._pod} in {self._namespace}, port {self._port}: {said}")
        except (ConnectionClosed, ConnectionError):
            return


async def _up(reader: asyncio.StreamReader, socket: ClientConnection) -> None:
    with contextlib.suppress(ConnectionClosed, ConnectionError):
        while data := await reader.read(READ_BYTES):
            await socket.send(bytes([DATA]) + data)
