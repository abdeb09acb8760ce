"""The port by which operators come over the apiserver: nobody is let in, or further, without a login and a right."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from daemon.faults import TowerError
from tests.tower_server.admin.standin import NAMESPACE, SERVER, Apiserver, answer
from tests.tower_server.kit import Answer, exchange, running
from tower_server.admin import socket as admin_socket
from tower_server.admin.app import CALLS, AdminApp
from tower_server.admin.login import Logins
from tower_server.admin.operators import OperatorApp, OperatorPort

pytestmark = pytest.mark.asyncio
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@dataclass
class Way:
    host: Apiserver
    port: int

    async def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        payload = b"" if body is None else json.dumps(body).encode()
        fields = {"Host": "localhost", "Content-Length": str(len(payload)), **headers}
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            return await exchange(reader, writer, head.encode() + payload)
        finally:
            writer.close()
            await writer.wait_closed()

    async def login(self, user: str) -> dict[str, str]:
        key = self.host.person(user)
        made = await self("POST", "/v1/login", answer((await self("GET", "/v1/login")).json(), key))
        assert made.status == 200, made
        return {"Authorization": f"Bearer {made.json()['token']}"}


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Way]:
    host = Apiserver()
    async with running(folder) as server:
        logins = Logins(host, namespace=NAMESPACE, server=SERVER)  # type: ignore[arg-type]
        port = OperatorPort(OperatorApp(AdminApp(server.services), logins), "127.0.0.1:0")
        await port.start()
        try:
            yield Way(host, int(port.address.rpartition(":")[2]))
        finally:
            await port.stop()


async def test_without_a_login_no_call_is_made(tmp_path: Path) -> None:
    async with opened(tmp_path) as way:
        for pattern, methods in CALLS.items():
            path = "/v1/" + "/".join("x" if part.isupper() else part for part in pattern)
            for method in methods:
                refused = await way(method, path)
                assert (refused.status, refused.json()["code"]) == (401, "TWR613"), path
        assert (await way("GET", "/v1/backup")).status == 401
        assert (await way("GET", "/v1/clusters/x/forward/y", **UPGRADE)).status == 401
        assert (await way("GET", "/v1/clusters", Authorization="Bearer made-up")).status == 401
        assert not way.host.asked, "nobody is asked about nobody"


async def test_a_person_makes_the_calls_that_rbac_gives_them_and_stands_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with opened(tmp_path) as way:
        alice = await way.login("alice")
        refused = await way("POST", "/v1/clusters", {"name": "edge", "join": False}, **alice)
        assert (refused.status, refused.json()["code"]) == (403, "TWR614")
        assert "alice may not create clusters.admin.tower.kubesphere.io" in refused.json()["message"]
        way.host.allowed |= {("alice", "create", "clusters"), ("alice", "list", "clusters")}
        made = await way("POST", "/v1/clusters", {"name": "edge", "join": False}, **alice)
        assert (made.status, made.json()["name"]) == (201, "edge")
        assert [each["name"] for each in (await way("GET", "/v1/clusters", **alice)).json()["items"]] == ["edge"]
        assert (await way("DELETE", "/v1/clusters/edge", **alice)).status == 403
        refused = await way("GET", "/v1/clusters/edge/forward/grafana", **alice, **UPGRADE)
        assert (refused.status, refused.json()["code"]) == (403, "TWR614")
        way.host.allowed.clear()  # taken away: it counts at the next call
        assert (await way("GET", "/v1/clusters", **alice)).status == 403


async def test_the_state_with_the_ca_in_it_leaves_by_this_way_for_nobody(tmp_path: Path) -> None:
    async with opened(tmp_path) as way:
        alice = await way.login("alice")
        way.host.allowed |= {("alice", verb, "backup") for verb in ("get", "list", "watch", "create")}
        for query in ("", "?watch=1"):
            refused = await way("GET", f"/v1/backup{query}", **alice)
            assert (refused.status, refused.json()["code"]) == (404, "TWR612")


async def test_what_a_web_page_could_send_is_refused_before_anything(tmp_path: Path) -> None:
    async with opened(tmp_path) as way:
        assert (await way("GET", "/v1/login", Origin="http://evil.example")).status == 403
        reader, writer = await asyncio.open_connection("127.0.0.1", way.port)
        refused = await exchange(reader, writer, b"GET /v1/login HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        writer.close()
        assert refused.status == 421
        assert (await way("PUT", "/v1/login")).json()["code"] == "TWR612"


SLOW = b"POST /v1/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{"


@pytest.mark.parametrize("said", [b"", b"GET /v1/lo", SLOW], ids=["nothing", "half a head", "half a body"])
async def test_whoever_says_nothing_whole_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(admin_socket, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(admin_socket.defaults, "HEAD_DEADLINE", 3600.0)  # none goes by itself
    async with opened(tmp_path) as way:
        came = [socket.create_connection(("127.0.0.1", way.port)) for _ in range(5)]  # accepted in one turn of the loop
        for each in came:
            each.setblocking(False)
        held = [await asyncio.open_connection(sock=each) for each in came]
        for _, writer in held:
            with contextlib.suppress(ConnectionError):  # some have been dropped already
                writer.write(said)
                await writer.drain()
        assert (await way("GET", "/v1/login")).status == 200
        async with asyncio.timeout(30):
            for reader, _ in held[:2]:  # the oldest went
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
        for _, writer in held:
            writer.transport.abort()


@pytest.mark.parametrize("said", [b"", b"GET /v1/lo", SLOW], ids=["nothing", "half a head", "half a body"])
async def test_what_is_not_complete_in_time_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(admin_socket.defaults, "HEAD_DEADLINE", 0.1)
    async with opened(tmp_path) as way:
        reader, writer = await asyncio.open_connection("127.0.0.1", way.port)
        async with asyncio.timeout(20):
            writer.write(said)
            answered = await reader.read() if said != SLOW else await reader.readuntil(b"}\n")
        writer.close()
        assert (b"not complete within 0.1 s" in answered) is (said == SLOW)


async def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    async with opened(tmp_path) as way:
        other = OperatorPort(OperatorApp(None, None), f"127.0.0.1:{way.port}")  # type: ignore[arg-type]
        with pytest.raises(TowerError, match=f"127.0.0.1:{way.port} cannot be listened on") as caught:
            await other.start()
        assert caught.value.code == "TWR103"
        assert "operators.listen" in (caught.value.mend or "")
