"""The controller's way into a member is that of any caller: the cluster's port, under the name that callers verify."""

from __future__ import annotations

import asyncio
import ssl
import time

import pytest

from certs.ca import Authority
from certs.keys import generate_key, key_to_pem
from certs.tls import load_pair
from daemon.kube.errors import Unreachable
from daemon.kube.resources import NAMESPACES
from tower_server.controller.reach import Reach

pytestmark = pytest.mark.asyncio
ANSWER = b'{"kind": "Namespace", "metadata": {"name": "kube-system"}}'


class Port:
    """A cluster's port as its agent's gateway answers: TLS under the member's name, and who called."""

    def __init__(self, authority: Authority, cluster: str) -> None:
        self.callers: list[tuple[tuple[str, str], ...]] = []
        key = generate_key()
        issued = authority.issue_serving(cluster, public_key=key.public_key(), at=time.time())
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load_pair(self._context, chain_pem=issued.chain_pem, key_pem=key_to_pem(key))
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.load_verify_locations(cadata=authority.bundle.root_pem.decode())

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        return self._server.sockets[0].getsockname()[1]

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shown = writer.get_extra_info("peercert")
        self.callers.append(tuple(pair for name in shown["subject"] for pair in name))
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(ANSWER)}\r\n\r\n"
        writer.write(head.encode() + ANSWER)
        await writer.drain()
        await reader.read()
        writer.close()


async def call(reach: Reach, cluster: str, port: int) -> None:
    async with reach.client(cluster, port) as member:
        assert (await member.get(NAMESPACES, "kube-system"))["kind"] == "Namespace"


async def test_it_calls_as_the_hosts_admin_and_keeps_its_certificate():
    authority = Authority.create("lab", at=time.time())
    reach, served = Reach(authority, bind="0.0.0.0"), Port(authority, "edge")
    async with served as port:
        await call(reach, "edge", port)
        first = reach._credential()
        await call(reach, "edge", port)
        assert reach._credential() == first
    assert dict(served.callers[0]) == {"organizationName": "tower:lab:cluster-admins", "commonName": "tower:lab:admin"}


async def test_another_members_port_is_not_believed():
    authority = Authority.create("lab", at=time.time())
    async with Port(authority, "other") as port:
        with pytest.raises(Unreachable):
            await call(Reach(authority, bind="127.0.0.1"), "edge", port)


async def test_a_port_that_does_not_listen_is_said_to_be_so():
    authority = Authority.create("lab", at=time.time())
    async with Port(authority, "edge") as port:
        pass
    with pytest.raises(Unreachable, match=f"127.0.0.1:{port}"):
        async with Reach(authority, bind="").client("edge", port) as member:
            await member.get(NAMESPACES, "kube-system", deadline=0.2)


async def test_the_certificate_is_made_anew_in_time(monkeypatch):
    authority = Authority.create("lab", at=time.time())
    reach = Reach(authority, bind="")
    first = reach._credential()
    reach._renew_at = time.time() - 1
    assert reach._credential() != first
