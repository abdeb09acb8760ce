from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping

import pytest
import uvloop

from tests.lab.pki import ClusterCA


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The product's loop: it closes and delivers at other moments than asyncio's own."""
    return {"uvloop": _uvloop}


def _uvloop() -> asyncio.AbstractEventLoop:
    """With the spare descriptor that libuv opens at a loop's first socket, so that no test seems to leave it behind."""
    loop = uvloop.new_event_loop()
    server = loop.run_until_complete(loop.create_server(asyncio.Protocol, "127.0.0.1", 0))
    server.close()
    loop.run_until_complete(server.wait_closed())
    return loop


@pytest.fixture(scope="session")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's TLS for 127.0.0.1."""
    authority = ClusterCA(tmp_path_factory.mktemp("outer-tls"), "Outer CA")
    pair = authority.server("tower", ["127.0.0.1"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pair.certificate, pair.key)
    return server, ssl.create_default_context(cadata=authority.pem.decode())
