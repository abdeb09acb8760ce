"""A caller at the far end of a tunnel: TLS through a stream, one HTTP request after the other."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import Any, cast

from protocol.aio.tunnel import Tunnel


class _Bytes(asyncio.Protocol):
    """A stream as a reader; what it gets is copied, since it is borrowed."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader()
        self.transport: asyncio.Transport | None = None
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.reader.feed_data(bytes(data))

    def eof_received(self) -> bool:
        self.reader.feed_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.reader.feed_eof()
        if not self.lost.done():
            self.lost.set_result(exc)


class Caller:
    """TLS by hand over a stream, so that the test sees exactly what crosses the tunnel."""

    def __init__(self, stream: _Bytes, tls: ssl.SSLObject, into: ssl.MemoryBIO, out: ssl.MemoryBIO) -> None:
        self.stream = stream
        self._tls = tls
        self._into = into
        self._out = out

    @classmethod
    async def open(
        cls, tunnel: Tunnel, context: ssl.SSLContext, *, name: str = "edge.members.tower", caller: str = "203.0.113.9:5"
    ) -> Caller:
        stream = _Bytes()
        await tunnel.open("kubernetes", stream, caller=caller, connection_id="c1")
        into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
        made = cls(stream, context.wrap_bio(into, out, server_hostname=name), into, out)
        await made._drive(made._tls.do_handshake)
        return made

    async def _drive(self, step: Any) -> Any:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self._flush()
                data = await asyncio.wait_for(self.stream.reader.read(65536), 30)
                if not data:
                    self._into.write_eof()
                self._into.write(data) if data else None
            finally:
                self._flush()

    def _flush(self) -> None:
        data = self._out.read()
        if data and self.stream.transport is not None:
            self.stream.transport.write(data)

    async def ask(self, path: str = "/api", **headers: str) -> tuple[int, Any]:
        """One GET; the status and the JSON of the answer."""
        lines = [f"GET {path} HTTP/1.1", "Host: member", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
        self._tls.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        self._flush()
        head = b""
        while b"\r\n\r\n" not in head:
            head += await self._drive(lambda: self._tls.read(65536))
        top, _, body = head.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in top.split(b"\r\n")[1:])
        length = int(fields[b"content-length"])
        while len(body) < length:
            body += await self._drive(lambda: self._tls.read(65536))
        return int(top.split(b" ")[1]), json.loads(body)

    @property
    def shown_serial(self) -> int:
        """Of the serving certificate that this connection was shown."""
        shown = self._tls.getpeercert()
        assert shown is not None
        return int(str(shown["serialNumber"]), 16)

    def close(self) -> None:
        if self.stream.transport is not None:
            self.stream.transport.close()
