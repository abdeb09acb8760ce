from __future__ import annotations

import ssl

import pytest

from tests.lab.loops import pytest_asyncio_loop_factories as pytest_asyncio_loop_factories
from tests.lab.pki import ClusterCA


@pytest.fixture(scope="session")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's TLS for 127.0.0.1."""
    authority = ClusterCA(tmp_path_factory.mktemp("outer-tls"), "Outer CA")
    pair = authority.server("tower", ["127.0.0.1"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pair.certificate, pair.key)
    return server, ssl.create_default_context(cadata=authority.pem.decode())
