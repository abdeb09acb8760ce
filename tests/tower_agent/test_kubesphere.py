"""What the agent answers about the member's KubeSphere: a proof, or why there is none; never the secret."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from daemon.faults import TowerError
from daemon.kubesphere import KEY, proof
from tower_agent.kubesphere import KubeSphere

pytestmark = pytest.mark.asyncio
SECRET = "thirty-two-letters-of-no-real-one"
NONCE = b"n" * 32
GOOD = {"data": {KEY: f"authentication: {{jwtSecret: {SECRET}}}"}}


class Api:
    """The member's apiserver: one ConfigMap, or what it says instead."""

    def __init__(self, found: Any) -> None:
        self._found = found
        self.asked: list[str] = []

    async def json(self, _method: str, path: str) -> Any:
        self.asked.append(path)
        if isinstance(self._found, TowerError):
            raise self._found
        return self._found


@asynccontextmanager
async def ks_apiserver(status: int) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"GET /kapis/version ")
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


async def answer(found: Any, *, status: int = 200) -> dict[str, Any]:
    async with ks_apiserver(status) as address:
        return await KubeSphere(Api(found), address).answer(NONCE, host="hq", cluster="edge")  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [200, 401])
async def test_a_proof_is_over_both_nonces_and_new_each_time(status: int) -> None:
    first, second = await answer(GOOD, status=status), await answer(GOOD)
    for each in (first, second):
        own = base64.b64decode(each["nonce"])
        wanted = proof(SECRET, host="hq", cluster="edge", server_nonce=NONCE, agent_nonce=own)
        assert base64.b64decode(each["mac"]) == wanted
        assert SECRET not in json.dumps(each)
    assert first != second


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (
            TowerError("TWR305", "the apiserver answered 403"),
            "kubesphere-system/kubesphere-config cannot be read: .*403",
        ),
        ({"data": {}}, "kubesphere-system/kubesphere-config: it has no kubesphere.yaml"),
    ],
)
async def test_why_there_is_no_proof_is_said(found: Any, says: str) -> None:
    import re

    said = await answer(found)
    assert set(said) == {"text"}
    assert re.search(says, said["text"])


async def test_a_ks_apiserver_that_fails_or_is_not_there_is_named_and_the_secret_not_read() -> None:
    assert "answers 502" in (await answer(GOOD, status=502))["text"]
    async with ks_apiserver(200) as address:
        pass
    api = Api(GOOD)
    said = await KubeSphere(api, address).answer(NONCE, host="hq", cluster="edge")  # type: ignore[arg-type]
    assert f"ks-apiserver at {address} does not answer" in said["text"]
    assert api.asked == []
