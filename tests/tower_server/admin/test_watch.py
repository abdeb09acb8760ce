"""Watching clusters: all of them first, then every change, also for one who reads slowly."""

import asyncio
import contextlib
import json
import threading

import pytest

from tests.tower_server.kit import admin, joined, running
from tower_server import agents as agents_room

pytestmark = pytest.mark.asyncio


@contextlib.asynccontextmanager
async def watching(server):
    reader, writer = await asyncio.open_unix_connection(str(server.config.admin_socket))
    writer.write(b"GET /v1/clusters?watch=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")

    async def line():
        async with asyncio.timeout(30):
            size = int(await reader.readline(), 16)
            data = await reader.readexactly(size + 2)
            return json.loads(data) if size else None

    try:
        yield line
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def silenced(server):
    """Gives what keeps the store's only worker busy for the time of a `with`."""
    speak = threading.Event()

    @contextlib.contextmanager
    def silence():
        store = server.services.agents._store
        store._worker.submit(speak.wait)
        try:
            yield
        finally:
            speak.set()

    try:
        yield silence
    finally:
        speak.set()


async def test_what_is_there_comes_first_then_what_changes(tmp_path):
    async with running(tmp_path) as server:
        await server.add("a")
        async with watching(server) as line:
            first = await line()
            assert (first["type"], first["object"]["name"]) == ("ADDED", "a")
            assert (await line())["type"] == "SYNCED"
            await server.add("b")
            added = await line()
            assert (added["type"], added["object"]["name"]) == ("ADDED", "b")
            async with joined(server, "c"):
                states = []
                while not states or states[-1] != ("MODIFIED", "Connected"):
                    change = await line()
                    states.append((change["type"], change["object"]["state"]))
                assert states[0][0] == "ADDED"
            await admin(server, "DELETE", "/v1/clusters/a")
            while (change := await line())["type"] != "DELETED":
                assert change["object"]["name"] == "c"
            assert change["object"]["name"] == "a"


async def test_stopping_the_server_ends_watches(tmp_path):
    async with contextlib.AsyncExitStack() as stack:
        async with running(tmp_path) as server:
            line = await stack.enter_async_context(watching(server))
            assert (await line())["type"] == "SYNCED"
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ValueError):
            assert await line() is None


async def test_a_store_that_does_not_answer_hides_no_cluster_and_deletes_none(tmp_path, monkeypatch):
    monkeypatch.setattr(agents_room, "SHOW_PATIENCE", 0.1)
    async with running(tmp_path) as server, silenced(server) as silence, joined(server, "edge-1") as agent:
        name = agent.identity.reply.agent
        async with watching(server) as line:
            while (await line())["type"] != "SYNCED":
                pass
            with silence():
                await agent.close()
                while (change := await line())["object"]["state"] != "TunnelDown":
                    assert change["type"] == "MODIFIED", change
                assert (change["type"], change["object"]["agents"]) == ("MODIFIED", [name])
                listed = (await admin(server, "GET", "/v1/clusters")).json()
                shown = (await admin(server, "GET", "/v1/clusters/edge-1")).json()
                agents = (await admin(server, "GET", "/v1/agents")).json()
                assert [each["state"] for each in (*listed["items"], shown)] == ["TunnelDown"] * 2
                assert [each["name"] for each in agents["items"]] == [name]
                for answer in (listed, shown, agents):
                    assert answer["stale"].startswith("agents are shown as of 20"), answer["stale"]
                    assert "no answer within" in answer["stale"]
        assert (await admin(server, "GET", "/v1/clusters/edge-1")).json()["stale"] is None
