"""This room's tests run on the loop that the server runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import structlog
import uvloop


@pytest.fixture(autouse=True)
def _log_of_no_other_test() -> None:
    """A level that another room's test has set for its process would keep lines from those who look at them here."""
    structlog.reset_defaults()


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
