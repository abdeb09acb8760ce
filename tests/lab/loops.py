"""The product's event loop for the tests of a room: its conftest imports the hook from here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop closes and delivers at other moments than asyncio's own."""
    return {"uvloop": _uvloop}


def _uvloop() -> asyncio.AbstractEventLoop:
    """With the spare descriptor that libuv opens at a loop's first socket, so that no test seems to leave it behind."""
    loop = uvloop.new_event_loop()
    server = loop.run_until_complete(loop.create_server(asyncio.Protocol, "127.0.0.1", 0))
    server.close()
    loop.run_until_complete(server.wait_closed())
    return loop
