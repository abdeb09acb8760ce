"""Resolves host names through the system's resolver, without waiting for it longer than the caller wants to.

A lookup cannot be cancelled, and the resolver's own timeouts are long: with its first name server dead it takes five
seconds or more, as long as a whole dial may take. So lookups run in a thread that does not hold up the end of the
process, one at a time for each name. Whoever gives up leaves theirs running, and the next one to ask gets its result.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final

KEPT: Final = 60.0  # seconds that an answer which nobody waited for is good: longer than an agent waits to dial again

Found = list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]]

_Outcome = tuple[float, Found | Exception]  # and when it came

_lookups: Final[dict[tuple[str, int], Future[_Outcome]]] = {}


async def look_up(host: str, port: int, deadline: float) -> Found:
    """The addresses for TCP, best first. Raises OSError, UnicodeError; TimeoutError when there is no answer yet."""
    with suppress(socket.gaierror):  # what is no name needs nobody to be asked
        return _ask(host, port, socket.AI_NUMERICHOST)
    async with asyncio.timeout(deadline):
        while True:
            lookup = _lookups.get((host, port)) or _begin(host, port)
            at, outcome = await asyncio.wrap_future(lookup)
            if _lookups.get((host, port)) is lookup:
                del _lookups[host, port]
            if time.monotonic() - at > KEPT:
                continue
            if isinstance(outcome, Exception):
                raise outcome
            return outcome


def _begin(host: str, port: int) -> Future[_Outcome]:
    lookup: Future[_Outcome] = Future()
    lookup.set_running_or_notify_cancel()  # else the first to give up would cancel it for all

    def run() -> None:
        outcome: Found | Exception
        try:
            outcome = _ask(host, port)
        except Exception as error:  # the thread's boundary: whoever asked raises it
            outcome = error
        lookup.set_result((time.monotonic(), outcome))

    try:
        threading.Thread(target=run, name=f"look up {host}", daemon=True).start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, "no thread can be started for the lookup") from error
    _lookups[host, port] = lookup
    return lookup


def _ask(host: str, port: int, flags: int = 0) -> Found:
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=flags))
