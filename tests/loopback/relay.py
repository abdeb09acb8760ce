"""The network between agent and server, with its faults: `python -m tests.loopback.relay PORT TARGET CONTROL`.

A process of its own that relays TCP to TARGET and takes one command a connection on CONTROL: `cut` resets every
connection, `close` ends each in order, as a proxy does whose time is over, `move` resets them and comes from another
address from then on, `shut` resets and accepts no more, `open` accepts again, `stall` goes on without moving a byte (a
half-open link), `flow` ends that, `corrupt` changes one byte of the next block from the agent. `cut one` and
`stall one` are for the oldest connection only.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.lab.processes import Child, free_ports
from tests.lab.world import ROOT

RESET = struct.pack("ii", 1, 0)
MOVED = "127.0.0.2"


class Connection:
    """One that is relayed."""

    def __init__(self, ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        self.ends = ends
        self.flows = asyncio.Event()

    def flow(self, flows: bool) -> None:
        if flows:
            self.flows.set()
        else:
            self.flows.clear()

    def close(self) -> None:
        for each in self.ends:
            each.close()
        self.flows.set()

    def cut(self) -> None:
        for each in self.ends:
            each.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            each.transport.abort()
        self.flows.set()  # a pump that waits finds out


class Relay:
    def __init__(self, port: int, target: int) -> None:
        self._port, self._target = port, target
        self._server: asyncio.Server | None = None
        self._connections: list[Connection] = []  # oldest first
        self._flows = True  # those to come too
        self._corrupt = False
        self._source: tuple[str, int] | None = None

    async def command(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = (await reader.readline()).decode().strip()
        match name:
            case "cut":
                self._cut()
            case "close":
                for connection in self._connections:
                    connection.close()
            case "move":
                self._source = (MOVED, 0)
                self._cut()
            case "cut one":
                self._connections[0].cut()
            case "shut":
                assert self._server is not None
                self._server.close()
                self._cut()
            case "open":
                self._server = await asyncio.start_server(self._relay, "127.0.0.1", self._port)
            case "stall" | "flow":
                self._flows = name == "flow"
                for connection in self._connections:
                    connection.flow(self._flows)
            case "stall one":
                self._connections[0].flow(False)
            case "corrupt":
                self._corrupt = True
        writer.write(b"done\n")
        writer.close()

    def _cut(self) -> None:
        for connection in self._connections:
            connection.cut()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far = await asyncio.open_connection("127.0.0.1", self._target, local_addr=self._source)
        except OSError:
            writer.transport.abort()
            return
        made = Connection((writer, far))
        made.flow(self._flows)
        self._connections.append(made)
        await asyncio.gather(
            self._pump(reader, far, made.flows, agent=True),
            self._pump(far_reader, writer, made.flows),
            return_exceptions=True,
        )
        self._connections.remove(made)
        for each in made.ends:
            each.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event, *, agent: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await flows.wait()
                if agent and self._corrupt and len(data) > 8:
                    self._corrupt = False
                    data = data[:-1] + bytes([data[-1] ^ 0xFF])
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof() if writer.can_write_eof() else writer.close()


async def main(port: int, target: int, control: int) -> None:
    relay = Relay(port, target)
    relay._server = await asyncio.start_server(relay._relay, "127.0.0.1", port)
    await (await asyncio.start_server(relay.command, "127.0.0.1", control)).serve_forever()


class Network:
    """The relay's process, as a test uses it."""

    def __init__(self, folder: Path, target: int) -> None:
        self.port, self._control = free_ports(2)
        argv = [sys.executable, "-m", "tests.loopback.relay", *map(str, (self.port, target, self._control))]
        self._child = Child("relay", argv, log=folder / "relay.log", cwd=ROOT)
        self._child.until(self._answers, "the relay answers", 20.0)

    def do(self, command: str) -> None:
        with socket.create_connection(("127.0.0.1", self._control), timeout=10.0) as control:
            control.sendall(f"{command}\n".encode())
            assert control.recv(100) == b"done\n"

    def stop(self) -> None:
        self._child.stop()

    def _answers(self) -> bool:
        try:
            self.do("")
        except OSError:
            return False
        return True


@contextlib.contextmanager
def network(folder: Path, target: int) -> Iterator[Network]:
    made = Network(folder, target)
    try:
        yield made
    finally:
        made.stop()


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:4])))
