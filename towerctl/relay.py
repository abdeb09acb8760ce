"""`forward`: a local port whose connections are streams to a declared service of a member.

Each TCP connection becomes one WebSocket on the admin socket: binary messages are bytes, an empty text message is the
half-close, in both directions. A reader that stops stops its writer (TCP back-pressure here, the WebSocket's there), so
that nothing piles up. A connection that the server refuses is closed and its reason printed; the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from typing import Final

from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK, InvalidHandshake, InvalidStatus

from daemon.faults import TowerError
from daemon.unixhttp import API_HOST
from towerctl.client import AdminClient, path_of, refusal_of, unreachable

READ_BYTES: Final = 64 * 1024
MAX_MESSAGE: Final = 1024 * 1024
MAX_QUEUE: Final = 4  # messages kept for a local reader that is slower than the member
MAX_CONNECTIONS: Final = 256
CLOSE_DEADLINE: Final = 2.0
FLUSH_DEADLINE: Final = 30.0  # for a local reader to take what came before the end
HALF_CLOSE: Final = ""
Say = Callable[[str], None]


class Forwarder:
    """Listens on one local address until it is cancelled; owns every connection that it accepts."""

    def __init__(self, client: AdminClient, *, cluster: str, service: str, say: Say) -> None:
        self._client = client
        self._path = path_of("clusters", cluster, "forward", service)
        self._say = say
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, address: str, port: int, *, ready: Callable[[int], None]) -> None:
        """Runs until cancelled. `ready` is called with the port in use."""
        try:
            server = await asyncio.start_server(self._accept, address, port, limit=READ_BYTES)
        except OSError as error:
            raise _cannot_listen(address, port, error) from error
        try:
            async with server:
                ready(server.sockets[0].getsockname()[1])
                await server.serve_forever()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def probe(self) -> None:
        """Opens one stream and closes it: a service that cannot be reached is said at once, not at the first use."""
        async with self._open():
            pass

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= MAX_CONNECTIONS:
            self._say(f"more than {MAX_CONNECTIONS} connections at once: one was refused")
            writer.transport.abort()
            return
        peer = "{}:{}".format(*writer.get_extra_info("peername")[:2])
        task = asyncio.create_task(self._serve_one(reader, writer, peer), name=f"forward {peer}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str) -> None:
        try:
            async with self._open() as socket:
                await relay(reader, writer, socket)
            await self._last(reader, writer, peer)
        except TowerError as error:
            self._say(f"connection from {peer}: {error.code} {error.message}")
        except ConnectionClosed as error:
            reason = error.rcvd.reason if error.rcvd is not None else ""
            self._say(f"connection from {peer}: the stream was cut: {reason or error}")
        except OSError as error:
            self._say(f"connection from {peer}: {error.strerror or error}")
        finally:
            writer.transport.abort()

    async def _last(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str) -> None:
        """Say that this was all, and go when the local side goes. Into a socket that was closed at once it might still
        speak: the reset that it gets for that eats what it has not read yet."""
        try:
            async with asyncio.timeout(FLUSH_DEADLINE):
                writer.write_eof()
                while await reader.read(READ_BYTES):
                    pass
                writer.close()
                await writer.wait_closed()
        except TimeoutError:
            if writer.transport.get_write_buffer_size():
                text = f"the local side did not take the last bytes within {FLUSH_DEADLINE:g}s"
                self._say(f"connection from {peer}: {text}")

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[ClientConnection]:
        timeout = self._client.timeout
        try:
            socket = await unix_connect(
                self._client.path,
                f"ws://{API_HOST}{self._path}",
                compression=None,
                open_timeout=timeout,
                ping_interval=None,  # the socket is local: it dies with the server
                close_timeout=CLOSE_DEADLINE,
                max_size=MAX_MESSAGE,
                max_queue=MAX_QUEUE,
                user_agent_header=None,
                additional_headers=self._client.headers,
            )
        except InvalidStatus as error:
            raise refusal_of(
                error.response.status_code,
                error.response.reason_phrase,
                bytes(error.response.body or b""),
                self._client.label,
            ) from error
        except (OSError, InvalidHandshake) as error:
            raise self._client.fault() or unreachable(error, self._client.label, timeout) from error
        try:
            yield socket
        finally:
            try:
                await socket.close()
            finally:
                socket.transport.abort()  # of which nothing is left to do, unless the close was cut short


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, socket: ClientConnection) -> None:
    """Returns when both directions have ended or the server has closed; a failure of one direction ends the other."""
    up = asyncio.create_task(_up(reader, socket), name="forward up")
    down = asyncio.create_task(_down(writer, socket), name="forward down")
    gone = asyncio.create_task(socket.wait_closed(), name="forward closed")
    waiting: set[asyncio.Task[None]] = {up, down, gone}
    try:
        while not (down.done() and (up.done() or gone.done())):
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        for task in (up, down, gone):
            task.cancel()
        await asyncio.gather(up, down, gone, return_exceptions=True)


async def _up(reader: asyncio.StreamReader, socket: ClientConnection) -> None:
    with contextlib.suppress(ConnectionClosedOK):  # the member has said all; what it said is still on its way down
        while data := await reader.read(READ_BYTES):
            await socket.send(data)
        await socket.send(HALF_CLOSE)


async def _down(writer: asyncio.StreamWriter, socket: ClientConnection) -> None:
    async for message in socket:
        if isinstance(message, str):  # the half-close: nothing comes after it
            writer.write_eof()
            return
        writer.write(message)
        await writer.drain()


def _cannot_listen(address: str, port: int, error: OSError) -> TowerError:
    number = error.errno or errno.EADDRNOTAVAIL  # of which Python 3.13 says only that no address was left
    of_this_machine = "name an address of this machine before the port (ADDRESS:PORT), or the port alone"
    mend = {
        errno.EADDRINUSE: f"choose another local port, or let one be chosen: 0 (`ss -ltnp` says who holds {port})",
        errno.EACCES: "ports below 1024 need privileges: choose a higher one",
        errno.EADDRNOTAVAIL: of_this_machine,
    }.get(number)
    why = os.strerror(number) if mend else error.strerror or error  # asyncio's own text says the address again
    if isinstance(error, socket.gaierror):
        mend = of_this_machine
    return TowerError("TWR103", f"cannot listen on {address}:{port}: {why}", mend=mend)


async def run(forwarder: Forwarder, *, address: str, port: int, ready: Callable[[int], None]) -> None:
    """Serves until SIGINT or SIGTERM, then ends every connection."""
    loop = asyncio.get_running_loop()
    await forwarder.probe()
    serving = asyncio.create_task(forwarder.serve(address, port, ready=ready), name="forward")
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving
