"""A slow, long way between agent and server: `python -m tests.loopback.slow PORT TARGET BYTES_PER_SECOND ONE_WAY`.

In user space, since not every kernel can shape. Each direction of each connection has the rate for itself and queues
one bandwidth-delay product, no more; what does not fit waits in the sender, as it would before a real bottleneck.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.lab.processes import Child, free_ports
from tests.lab.world import ROOT

PIECE = 2048
KERNEL = 16 * 1024  # of socket buffers, where bytes would queue unseen


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rate: float, delay: float) -> None:
    """One direction until its end."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(max(2, int(2 * rate * delay / PIECE)))

    async def deliver() -> None:
        while True:
            at, data = await queue.get()
            await asyncio.sleep(max(0.0, at - loop.time()))
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()

    delivering = loop.create_task(deliver())
    free_at = loop.time()
    try:
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE):
                free_at = max(free_at, loop.time()) + len(data) / rate
                await asyncio.sleep(max(0.0, free_at - loop.time()))
                await queue.put((free_at + delay, data))
            await queue.put((loop.time() + delay, b""))
            await delivering
    finally:
        delivering.cancel()


async def serve(port: int, target: int, rate: float, delay: float) -> None:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL)
        far.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(far, ("127.0.0.1", target))
        except OSError:
            far.close()
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(sock=far, limit=PIECE)
        await asyncio.gather(
            carry(reader, far_writer, rate, delay), carry(far_reader, writer, rate, delay), return_exceptions=True
        )
        for each in (writer, far_writer):
            each.transport.abort()

    listening = socket.create_server(("127.0.0.1", port))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL)  # what it accepts inherits this
    server = await asyncio.start_server(relay, sock=listening, limit=PIECE)
    await server.serve_forever()


@contextlib.contextmanager
def slow_way(folder: Path, target: int, *, bits_per_second: float, one_way: float) -> Iterator[int]:
    """The port of such a way to `target`, a process of its own."""
    (port,) = free_ports(1)
    argv = [sys.executable, "-m", "tests.loopback.slow", *map(str, (port, target, bits_per_second / 8, one_way))]
    child = Child("slow", argv, log=folder / "slow.log", cwd=ROOT)

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        child.until(listens, "the slow way listens", 20.0)
        yield port
    finally:
        child.stop()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
