"""How the parts know of one another: under which address callers and agents are told to come."""

import asyncio
import ssl

import pytest

from tests.tower_server.kit import anonymous, running
from tower_server.assembly import callers_address
from tower_server.config import ServerConfig, StoreSection

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize(
    ("config", "address"),
    [
        (ServerConfig(store=StoreSection(kind="kubernetes"), public_url="wss://tower.example.com:8443"), ""),
        (ServerConfig(public_url="wss://tower.example.com:8443"), "tower.example.com"),
        (ServerConfig(), "127.0.0.1"),
    ],
)
async def test_callers_are_told_a_host_outside_of_a_pod_only(config, address):
    assert callers_address(config) == address


async def test_an_address_that_is_found_later_stands_in_the_servers_certificate(tmp_path):
    async with running(tmp_path) as server:

        async def answers_as(name: str) -> None:
            _, writer = await asyncio.open_connection(
                "127.0.0.1", server.tunnel_port, ssl=anonymous(server), server_hostname=name
            )
            writer.transport.abort()

        with pytest.raises(ssl.SSLCertVerificationError):
            await answers_as("tower.example.com")
        server.services.public.changed("wss://tower.example.com:8443")
        await answers_as("tower.example.com")
