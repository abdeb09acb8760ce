"""Opens a stream and waits for the peer's answer, on tunnels of either dialect.

The given protocol hears nothing before the peer has accepted, and then `connection_made` first. If the open fails it is
never called at all: whoever opens gets the reason as an exception.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

from protocol.constants import Code
from protocol.errors import StreamRefused, StreamReset


class Opening(Protocol):
    """A stream that the peer has not answered yet."""

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...
    def reset(self, code: Code, text: str) -> None: ...


S = TypeVar("S", bound=Opening)


async def opened(start: Callable[[asyncio.BaseProtocol], S], protocol: asyncio.BaseProtocol, *, deadline: float) -> S:
    """What `start` opens for the protocol that it is given, once the peer has agreed.

    Raises:
        StreamRefused: the peer refused, or the tunnel takes no new stream. TunnelLost: the tunnel ended.
        TimeoutError: no answer within `deadline` seconds; the open is cancelled.
    """
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    stream = start(_Answered(protocol, answer))
    try:
        async with asyncio.timeout(deadline):
            await answer
    except BaseException:
        stream.reset(Code.CANCELLED, "the caller no longer waits")
        raise
    return stream


class _Answered(asyncio.Protocol):
    """Stands before a protocol until the peer has answered, then hands the stream over."""

    def __init__(self, protocol: asyncio.BaseProtocol, answer: asyncio.Future[None]) -> None:
        self._protocol = protocol
        self._answer = answer
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def stream_accepted(self) -> None:
        assert self._transport is not None
        self._transport.set_protocol(self._protocol)
        try:
            self._protocol.connection_made(self._transport)
        except Exception as error:
            self._fail(error)
            raise
        if not self._answer.done():
            self._answer.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, StreamReset):
            exc = StreamRefused(exc.code, exc.text)
        self._fail(exc or StreamRefused(Code.CANCELLED, "the open was cancelled"))

    def _fail(self, error: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)
            self._answer.exception()  # whoever opened may be cancelled in this very turn; then it is nobody's
