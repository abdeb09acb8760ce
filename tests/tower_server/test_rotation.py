"""Whom a rotation waits for: agents that have said that they believe this very CA, and whose word was kept."""

import asyncio

import pytest

from certs.rotation import trust_id
from certs.verify import TrustBundle
from daemon.faults import TowerError
from tests.tower_server.kit import admin, joined, running
from tests.waiting import until
from tower_server.authority import RECORD, read
from tower_server.store.base import Kind

pytestmark = pytest.mark.asyncio


async def announced(agent):
    await until(lambda: agent.control is not None and agent.control.of("trust"))
    message = agent.control.of("trust")[-1]
    return message["number"], TrustBundle.from_pem(message["bundle"].encode())


async def waiting(server):
    return (await admin(server, "GET", "/v1/authority")).json()["waiting"]


async def test_an_agent_that_believes_another_ca_of_the_same_number_is_waited_for(tmp_path):
    """As after a restore from a copy: what was announced before it has the numbers of what is announced after it."""
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await admin(server, "POST", "/v1/authority/rotate", {"step": "start"})
        number, bundle = await announced(agent)
        earlier = TrustBundle.from_pem(agent.identity.reply.trust)
        await agent.report(trust=trust_id(number, earlier))
        await until(lambda: server.member("edge-1").report)
        refused = await admin(server, "POST", "/v1/authority/rotate", {"step": "switch"})
        assert refused.json()["code"] == "TWR510"
        assert f"edge-1/{agent.identity.reply.agent}" in refused.json()["message"]
        await agent.report(trust=trust_id(number, bundle))
        async with asyncio.timeout(20):
            while await waiting(server):
                await asyncio.sleep(0.01)
        switched = await admin(server, "POST", "/v1/authority/rotate", {"step": "switch"})
        assert switched.json()["phase"] == "switched"


async def test_a_ca_whose_record_somebody_deleted_is_written_again(tmp_path, capsys):
    async with running(tmp_path) as server:
        rotation, fingerprint = server.services.rotation, server.services.authority.bundle.fingerprint
        await rotation._store.delete(Kind.SECRET, RECORD)
        await rotation.follow()
        assert (await read(rotation._store)).bundle.fingerprint == fingerprint
        said = capsys.readouterr().out
        assert said.count("authority-put-back") == 1
        assert "TWR501" in said
        await rotation.follow()
        assert "authority-put-back" not in capsys.readouterr().out


async def test_a_ca_of_before_a_rotation_that_somebody_put_back_does_not_take_the_new_ones_place(tmp_path, capsys):
    """Its record is an earlier one again where the host's etcd was restored under servers that run: the key that agents
    believe would be gone with the next start."""
    async with running(tmp_path) as server:
        rotation, store = server.services.rotation, server.services.store
        earlier = await store.get(Kind.SECRET, RECORD)
        for step in ("start", "switch", "finish"):
            await rotation.take(step, force=True)
        now = await store.get(Kind.SECRET, RECORD)
        await store.update(Kind.SECRET, RECORD, earlier.data, expect=now.version)
        await rotation.follow()
        assert (await store.get(Kind.SECRET, RECORD)).data == now.data
        assert capsys.readouterr().out.count("authority-put-back") == 1
        await rotation.take("start", force=True)


async def test_what_could_not_be_noted_is_noted_at_the_next_heartbeat(tmp_path, monkeypatch):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await admin(server, "POST", "/v1/authority/rotate", {"step": "start"})
        believed = trust_id(*await announced(agent))
        agents, failed = server.services.agents, []

        async def away(*_: object) -> None:
            failed.append(True)
            raise TowerError("TWR105", "the store is away")

        with monkeypatch.context() as patch:
            patch.setattr(agents, "believes", away)
            await agent.report(trust=believed)
            await until(lambda: failed)
        assert await waiting(server)
        await agent.report(trust=believed)
        async with asyncio.timeout(20):
            while await waiting(server):
                await asyncio.sleep(0.01)
