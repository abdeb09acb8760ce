"""The two ends of a stream inside one process, with the same callbacks as a stream of a tunnel.

It is used where the server itself ends a caller's TLS, so that there is no tunnel in between. What one end writes
reaches the other's protocol in the same call, uncopied. A paused reader pauses the writer at the other end, and what
was under way is kept. EOF and close are delivered from the loop, after all data.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, cast

from protocol.constants import Code
from protocol.errors import ProtocolError, StreamReset


class PipeEnd(asyncio.Transport):
    """One end. Made by `pipe`."""

    __slots__ = (
        "_closed",
        "_end",
        "_eof",
        "_eof_told",
        "_held",
        "_lost",
        "_on_lost",
        "_other",
        "_paused",
        "_protocol",
        "_shut",
        "bytes_in",
        "bytes_out",
        "opened_at",
    )

    _other: PipeEnd

    def __init__(self, protocol: asyncio.BaseProtocol, on_lost: Callable[[], None] | None) -> None:
        super().__init__()
        self._protocol: Any = protocol
        self._on_lost = on_lost
        self._held: deque[bytes] = deque()
        self._paused = False
        self._shut = False  # our half is finished
        self._eof = self._eof_told = False  # the other's half is
        self._closed = False
        self._lost = False
        self._end: ProtocolError | None = None
        self.bytes_in = 0
        self.bytes_out = 0
        self.opened_at = monotonic()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closed or self._shut or not data:
            return
        self.bytes_out += len(data)
        self._other._receive(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._closed and not self._shut:
            self._shut = True
            self._other._receive_eof()

    def close(self) -> None:
        """The other end gets what is under way, then the end."""
        if not self._closed:
            self._finish(None)

    def abort(self) -> None:
        self.reset(Code.CANCELLED, "aborted")

    def reset(self, code: Code, text: str) -> None:
        """End both at once. The other end is told that the stream was cut."""
        if not self._closed:
            self._other._held.clear()
            self._other._paused = False
            self._finish(StreamReset(code, text))

    def cut(self, error: ProtocolError) -> None:
        """End both at once, from outside: both ends are told why."""
        if not self._lost:
            self._end = error
            self._other._held.clear()
            self._other._paused = False
            self._finish(error)

    @property
    def heard_all(self) -> bool:
        """Whether the other end has finished, and all that it said was handed on."""
        return self._eof_told

    def is_closing(self) -> bool:
        return self._closed

    def is_reading(self) -> bool:
        return not self._paused

    def pause_reading(self) -> None:
        if not self._paused and not self._closed:
            self._paused = True
            self._other._steer(full=True)

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            asyncio.get_running_loop().call_soon(self._deliver_held)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast("asyncio.BaseProtocol", self._protocol)

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self._other._held))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is no buffer: the other end reads, or this one pauses."""

    # ---- what the other end calls -------------------------------------------------------------------------------

    def _receive(self, data: bytes | bytearray | memoryview) -> None:
        self.bytes_in += len(data)
        if self._closed:
            return
        if self._paused or self._held:
            self._held.append(bytes(data))
        else:
            self._guard(self._protocol.data_received, data)

    def _receive_eof(self) -> None:
        self._eof = True
        if not self._held and not self._paused:
            self._tell_eof()

    def _steer(self, *, full: bool) -> None:
        if not self._lost and not self._closed:
            self._guard(self._protocol.pause_writing if full else self._protocol.resume_writing)

    # ---- ends ---------------------------------------------------------------------------------------------------

    def _guard(self, call: Callable[..., Any], *args: Any) -> Any:
        """A protocol that raises loses its own stream only, and both ends hear of it."""
        try:
            return call(*args)
        except Exception as error:  # the boundary between one end's protocol and whoever serves the other
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a pipe's protocol failed", "exception": error, "protocol": self._protocol}
            )
            if not self._lost:
                self.cut(StreamReset(Code.INTERNAL, "internal error; the log says more"))
            return True

    def _deliver_held(self) -> None:
        while self._held and not self._paused and not self._lost:
            self._guard(self._protocol.data_received, self._held.popleft())
        if self._held or self._paused or self._lost:
            return
        self._other._steer(full=False)
        if self._eof and self._end is None:
            self._tell_eof()
        if self._other._closed:
            self._lose()

    def _tell_eof(self) -> None:
        if not self._eof_told and not self._lost:
            self._eof_told = True
            if not self._guard(self._protocol.eof_received):
                self.close()

    def _finish(self, error: ProtocolError | None) -> None:
        other = self._other
        self._closed = True
        self._held.clear()
        loop = asyncio.get_running_loop()
        loop.call_soon(self._lose)
        if not other._lost:
            other._end = error
            if error is None and not other._closed:
                other._eof = True
            if not other._held and not other._paused:
                loop.call_soon(other._lost_after)

    def _lost_after(self) -> None:
        """The other end is gone and everything was handed on."""
        if self._held or self._paused:
            return  # it follows when they are
        if self._eof and self._end is None:
            self._tell_eof()
        self._lose()

    def _lose(self) -> None:
        if self._lost:
            return
        self._lost = self._closed = True
        self._held.clear()
        protocol, self._protocol = self._protocol, None
        if self._on_lost is not None:
            self._on_lost()
        protocol.connection_lost(self._end)


def pipe(
    first: asyncio.BaseProtocol, second: asyncio.BaseProtocol, *, on_lost: Callable[[], None] | None = None
) -> tuple[PipeEnd, PipeEnd]:
    """Both ends; the protocols' `connection_made` is the caller's to call. `on_lost`: the first end is over."""
    one, two = PipeEnd(first, on_lost), PipeEnd(second, None)
    one._other, two._other = two, one
    return one, two
