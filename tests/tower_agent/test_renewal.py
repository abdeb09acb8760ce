"""An identity that is renewed through a tunnel, or that a sibling has renewed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
import structlog.testing

from certs.identity_files import DirectoryIdentityStore
from certs.keys import key_from_pem
from protocol.constants import Code
from protocol.errors import HandshakeRejected
from tests.tower_agent.caller import Caller
from tests.tower_agent.conftest import MakeMember
from tests.tower_agent.tower import control_of, new_tower, serving_tower
from tests.waiting import until
from tower_agent import renewal as renewal_module
from tower_agent.trust import HostTrust

ADMIN = ("tower:east:admin", "tower:east:cluster-admins")


@pytest.mark.asyncio
async def test_an_expired_identity_renews_and_then_serves(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower(identity_ttl=60.0)) as tower:
        agent = await member.agent(tower)
        first = await tower.tunnel()
        await control_of(first).next("status")  # the agent holds it by now, and can say that it goes
        await agent.close("stop")
        member.agents.clear()
        await first.wait_closed()
        identity = agent.trust.identity
        at = time.time() - 3600
        old = tower.authority.issue_agent("edge", "a1", public_key=identity.key.public_key(), at=at, ttl=600)
        serving_key = key_from_pem(identity.serving_key_pem, what="test")
        serving = tower.authority.issue_serving("edge", public_key=serving_key.public_key(), at=at, ttl=600)
        store = DirectoryIdentityStore(member.folder / "state-east")
        expired = replace(identity, chain_pem=old.chain_pem, serving_chain_pem=serving.chain_pem)
        await store.save(expired, replaces=identity)
        tower.identity_ttl = 86400.0
        again = await member.agent(tower)
        renewing = await tower.tunnel()
        assert renewing.renew_only
        full = await tower.tunnel()
        assert not full.renew_only
        assert again.trust.validity.not_after > time.time() + 80000
        kept = await store.load("east")
        assert kept is not None
        assert kept.chain_pem == again.trust.identity.chain_pem
        caller = await Caller.open(full, tower.caller_context(tower.client(*ADMIN)))
        assert (await caller.ask())[0] == 200
        caller.close()


@pytest.mark.asyncio
async def test_renewal_at_two_thirds_swaps_the_serving_certificate_and_keeps_the_tunnel(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal_module, "RENEWAL_RETRY", (0.05, 0.1))
    tower = new_tower(identity_ttl=1000.0, backdate=700.0, refuse_renewal="not today")
    async with make_member() as member, serving_tower(tower):
        agent = await member.agent(tower)
        tunnel = await tower.tunnel()
        control = control_of(tunnel)
        before = agent.trust.serving_validity.serial
        held = await Caller.open(tunnel, tower.caller_context(tower.client(*ADMIN)))
        async with asyncio.timeout(30):
            while (status := await control.next("status"))["renewal"] is None:
                pass
        assert "not today" in status["renewal"]
        assert (await held.ask())[0] == 200

        tower.backdate, tower.refuse_renewal = 0.0, None
        async with asyncio.timeout(30):
            while (status := await control.next("status"))["renewal"] is not None:
                pass
        assert len(tower.renewals) >= 2
        assert agent.trust.serving_validity.serial != before
        after = await Caller.open(tunnel, tower.caller_context(tower.client(*ADMIN)))
        assert after.shown_serial == agent.trust.serving_validity.serial
        assert (await held.ask())[0] == 200  # the connection that stood before is not disturbed
        assert tunnel.closed is None
        for caller in (held, after):
            caller.close()


@pytest.mark.asyncio
async def test_certificates_that_are_due_when_they_come_are_a_failed_renewal_and_no_storm(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal_module, "RENEWAL_RETRY", (600.0, 600.0))
    tower = new_tower(identity_ttl=1000.0, backdate=700.0)
    async with make_member() as member, serving_tower(tower):
        await member.agent(tower)
        tunnel = await tower.tunnel()
        async with asyncio.timeout(30):
            while (status := await control_of(tunnel).next("status"))["renewal"] is None:
                pass
        assert "due for renewal already" in status["renewal"]
        assert len(tower.renewals) == 1
        assert tunnel.closed is None


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_tunnel_that_may_only_renew_ends_the_wait_after_a_renewal_that_failed(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The member is served by nobody until then. One attempt for each such tunnel, and no more."""
    monkeypatch.setattr(renewal_module, "RENEWAL_RETRY", (600.0, 600.0))
    tower = new_tower(identity_ttl=61.0, backdate=60.0, refuse_renewal="not today")
    async with make_member() as member, serving_tower(tower):
        await member.agent(tower)
        first = await tower.tunnel()
        async with asyncio.timeout(30):
            while (await control_of(first).next("status"))["renewal"] is None:
                pass
        await asyncio.sleep(max(0.0, first.peer.not_after + 0.1 - time.time()))
        first.close(Code.EXPIRED, "the identity expired")
        renewing = await tower.tunnel()
        assert renewing.renew_only
        await until(lambda: len(tower.renewals) >= 2)
        tower.refuse_renewal, tower.backdate = None, 0.0
        renewing.close(Code.INTERNAL, "the server is started anew")
        assert (await tower.tunnel()).renew_only
        assert not (await tower.tunnel()).renew_only
        assert len(tower.renewals) == 3


@pytest.mark.asyncio
async def test_an_identity_renewed_by_a_sibling_is_adopted(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal_module, "SIBLING_CHECK", 0.02)
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower)
        await tower.tunnel()
        store = DirectoryIdentityStore(member.folder / "state-east")
        sibling = await HostTrust.load(store, "east")
        await sibling.adopt(*tower.issue("edge", "a1", *sibling.requests()))
        await until(lambda: agent.trust.validity.serial == sibling.validity.serial)
        assert not tower.renewals


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_tunnel_that_is_lost_as_a_renewal_begins_is_a_failed_renewal_and_no_defect(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal_module, "RENEWAL_RETRY", (0.01, 0.05))
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower)
        tunnel = await tower.tunnel()
        await control_of(tunnel).next("status")
        reload, before = agent.trust.reload, agent.trust.validity.serial
        renew, lost = agent.renewal._renew, []

        async def renewing() -> None:
            if not lost:
                monkeypatch.setattr(agent.trust, "reload", lost_meanwhile)
            await renew()

        async def lost_meanwhile() -> bool:
            lost.append(True)
            monkeypatch.setattr(agent.trust, "reload", reload)
            tunnel.close(Code.INTERNAL, "the server dies")
            await until(lambda: not agent._channels)
            return False

        await until(lambda: agent._channels)
        monkeypatch.setattr(agent.renewal, "_renew", renewing)
        agent.trust._successor_from = 0.0
        agent.renewal.due.set()
        with structlog.testing.capture_logs() as lines:
            await until(lambda: agent.trust.validity.serial != before and agent.not_ready() is None)
        (failed,) = (line for line in lines if line["event"] == "renewal-failed")
        assert (failed["code"], failed["text"]) == ("TWR504", "the tunnel was lost before the request could leave")
        assert lost


@pytest.mark.slow
@pytest.mark.asyncio
async def test_what_a_sibling_has_renewed_is_adopted_without_a_tunnel_too(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent whose own identity the host takes no more comes back by its sibling's only."""
    monkeypatch.setattr(renewal_module, "SIBLING_CHECK", 0.02)
    async with make_member() as member, serving_tower(new_tower()) as tower:
        tower.refuse = HandshakeRejected(Code.UNTRUSTED, "not of this host any more")
        agent = await member.agent(tower)
        agent.trust._successor_from = 0.0  # due for renewal, which only a tunnel can bring
        agent.renewal.due.set()
        store = DirectoryIdentityStore(member.folder / "state-east")
        sibling = await HostTrust.load(store, "east")
        await asyncio.sleep(0.2)
        await sibling.adopt(*tower.issue("edge", "a1", *sibling.requests()))
        await until(lambda: agent.trust.validity.serial == sibling.validity.serial)
