"""A TCP balancer as a program: `python -m tests.lab.balancer PORT TARGET...` relays to the first target that answers.

It stands in for the Service by which agents reach several servers, where no kube-proxy runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

HOST = "127.0.0.1"


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def serve(near: tuple[asyncio.StreamReader, asyncio.StreamWriter], targets: list[int]) -> None:
    for target in targets:
        try:
            far = await asyncio.open_connection(HOST, target)
        except OSError:
            continue
        ways = [asyncio.create_task(relay(near[0], far[1])), asyncio.create_task(relay(far[0], near[1]))]
        with contextlib.suppress(OSError):
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        far[1].transport.abort()
        break
    near[1].transport.abort()


async def main(port: int, targets: list[int]) -> None:
    server = await asyncio.start_server(lambda *near: serve(near, targets), HOST, port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), [int(each) for each in sys.argv[2:]]))
