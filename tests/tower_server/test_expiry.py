"""A tunnel whose agent's identity runs out while it is open ends then, not at the next look around."""

import dataclasses
import time

import pytest

from protocol.constants import Code
from tests.tower_server.kit import Agent, enrol, joined, running
from tests.waiting import until
from tower_server import expiry

pytestmark = pytest.mark.asyncio
LATE = 2.0  # a second is promised; the other is for a busy machine


@pytest.mark.slow
async def test_a_tunnel_whose_identity_expires_while_it_is_open_is_closed_at_once_and_may_renew(tmp_path, monkeypatch):
    monkeypatch.setattr(expiry, "AGAIN", 0.01)  # it waits for what comes when the tunnel does
    async with running(tmp_path) as server, joined(server, "edge-2") as lasting:
        identity = await enrol(server, await server.add("edge-1"))
        name = identity.reply.agent
        short = server.services.authority.issue_agent(
            "edge-1", name, public_key=identity.key.public_key(), at=time.time() - 58, ttl=60.0
        )
        await server.services.agents.update(
            "edge-1", name, lambda held: dataclasses.replace(held, identity_expires=short.not_after)
        )
        shown = dataclasses.replace(identity, reply=dataclasses.replace(identity.reply, chain=short.chain_pem))
        agent = Agent(server, shown)
        assert not (await agent.connect()).renew_only
        await until(lambda: agent.closed)
        assert 0 <= time.time() - short.not_after < LATE
        assert agent.closed[0].code is Code.EXPIRED
        assert (await agent.connect()).renew_only
        assert not lasting.closed
        await agent.close()
