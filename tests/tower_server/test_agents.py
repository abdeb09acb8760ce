"""Who is let in as an agent: handshakes admitted, refused and limited; revocation and expiry of identities."""

import asyncio
import dataclasses
import time

import pytest

from certs.ca import Authority
from certs.errors import Untrusted
from certs.keys import generate_key, key_fingerprint
from certs.revocation import ALL_AGENTS
from certs.verify import load_chain
from daemon.faults import TowerError
from protocol.aio.hops import DialError
from protocol.constants import Code
from tests.tower_server.kit import Agent, admin, call, enrol, following, joined, renewal, running
from tests.waiting import until
from tower_server import agents
from tower_server.records import Agent as AgentRecord
from tower_server.store.base import Kind

pytestmark = pytest.mark.asyncio
DAY = 86400.0


def replaced(identity, *, chain: bytes, cluster: str | None = None):
    reply = identity.reply
    return dataclasses.replace(
        identity, reply=dataclasses.replace(reply, chain=chain, cluster=cluster or reply.cluster)
    )


async def refused(agent: Agent) -> DialError:
    with pytest.raises(DialError) as caught:
        await agent.connect()
    assert caught.value.hop == "handshake"
    return caught.value


async def test_revoking_an_agent_closes_its_tunnel_at_once_and_keeps_it_out(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent, joined(server, "edge-2") as other:
        name = agent.identity.reply.agent
        answer = await admin(server, "POST", f"/v1/agents/edge-1/{name}/revoke")
        assert (answer.status, answer.json()["name"]) == (200, f"edge-1/{name}")
        assert not server.member("edge-1").tunnels
        await until(lambda: agent.closed)
        assert agent.closed[0].code is Code.REVOKED
        error = await refused(agent)
        assert error.code == Code.REVOKED
        assert "revoked" in error.text
        verdict = server.member("edge-1").verdict
        assert (verdict.state, verdict.code) == ("AuthFailed", "TWR209")
        assert (await call(server, "edge-2")).status == 200
        assert other.closed == []


async def test_who_joins_after_a_deletion_by_a_clock_that_ran_ahead_serves_and_can_be_revoked(tmp_path):
    async with running(tmp_path) as server:
        services = server.services
        await services.revocations.revoke_agent("edge-1", ALL_AGENTS, at=time.time() + 60.0)
        async with joined(server, "edge-1") as agent:
            assert (await call(server, "edge-1")).status == 200
            reply = agent.identity.reply
            identity = services.authority.bundle.verify_agent(load_chain(reply.chain), time.time())
            await services.agents.revoke("edge-1", reply.agent)
            with pytest.raises(Untrusted, match="was revoked"):  # by the list, which is all that other servers ask
                identity.check(time.time(), services.revocations.current)


@pytest.mark.parametrize("what", ["revoked", "deleted", "made anew"])
async def test_what_ends_an_agent_between_its_admission_and_its_turn_keeps_it_out(tmp_path, what):
    """The records were asked already, and its tunnel is not there yet to be closed: others have their turn first."""
    async with running(tmp_path) as server:
        agent = Agent(server, await enrol(server, await server.add("edge-1")))
        listener, ask = server.server._parts.listener, server.services.agents.authenticate

        async def late(*arguments):
            admission = await ask(*arguments)
            if what == "revoked":
                await server.services.agents.revoke("edge-1", agent.identity.reply.agent)
            else:
                await admin(server, "DELETE", "/v1/clusters/edge-1")
            if what == "made anew":
                await server.add("edge-1")
            return admission

        listener.authenticate = late
        error = await refused(agent)
        assert error.code == (Code.DELETED if what == "deleted" else Code.REVOKED)
        assert [tunnel for _, tunnel in server.services.registry] == []


async def test_who_leaves_again_and_again_makes_no_list_for_everybody(tmp_path):
    """What an agent has signed to leave can be sent by whoever has seen it, as often as the port lets them."""
    async with running(tmp_path) as server, joined(server, "edge-1") as agent, joined(server, "edge-2"):
        name, revocations = agent.identity.reply.agent, server.services.revocations
        await server.services.agents.revoke("edge-1", name)
        number, signed = revocations.current.number, revocations.signed
        await server.services.agents.revoke("edge-1", name)
        assert (revocations.current.number, revocations.signed) == (number, signed)
        await revocations._change(
            lambda held: dataclasses.replace(held, agents={}), time.time()
        )  # as if it had died in between
        await server.services.agents.revoke("edge-1", name)
        assert set(revocations.current.agents) == {("edge-1", name)}


async def test_revocation_outlives_a_restart(tmp_path):
    async with running(tmp_path) as server:
        identity = await enrol(server, await server.add("edge-1"))
        await admin(server, "POST", f"/v1/agents/edge-1/{identity.reply.agent}/revoke")
    async with running(tmp_path) as server:
        assert (await refused(Agent(server, identity))).code == Code.REVOKED
        view = (await admin(server, "GET", "/v1/clusters/edge-1")).json()
        assert view["code"] == "TWR209"
        assert "join again" not in view["cause"], "what to do is said once, under the code"
        assert "`towerctl create token edge-1` and join again" in view["mend"]


async def test_an_agent_of_one_cluster_cannot_act_for_another(tmp_path):
    async with running(tmp_path) as server:
        identity = await enrol(server, await server.add("edge-1"))
        await server.add("edge-2")
        error = await refused(Agent(server, replaced(identity, chain=identity.reply.chain, cluster="edge-2")))
        assert error.code == Code.WRONG_CLUSTER
        assert not server.member("edge-2").tunnels


async def test_a_foreign_authority_and_a_stolen_certificate_are_refused(tmp_path):
    async with running(tmp_path) as server:
        identity = await enrol(server, await server.add("edge-1"))
        foreign = Authority.create("hq", at=time.time())
        issued = foreign.issue_agent("edge-1", "x", public_key=identity.key.public_key(), at=time.time())
        assert (await refused(Agent(server, replaced(identity, chain=issued.chain_pem)))).code == Code.UNTRUSTED
        thief = dataclasses.replace(identity, key=identity.serving_key)
        assert (await refused(Agent(server, thief))).code == Code.BAD_SIGNATURE


async def test_an_agent_without_a_record_is_refused(tmp_path):
    async with running(tmp_path) as server:
        identity = await enrol(server, await server.add("edge-1"))
        minted = server.services.authority.issue_agent(
            "edge-1", "never-enrolled", public_key=identity.key.public_key(), at=time.time()
        )
        error = await refused(Agent(server, replaced(identity, chain=minted.chain_pem)))
        assert "not one that this tower has enrolled" in error.text


async def test_an_identity_of_a_deleted_cluster_opens_nothing_in_a_new_one(tmp_path):
    async with running(tmp_path) as server:
        identity = await enrol(server, await server.add("edge-1"))
        await admin(server, "DELETE", "/v1/clusters/edge-1")
        assert "edge-1" in (await refused(Agent(server, identity))).text
        await server.add("edge-1")
        assert (await refused(Agent(server, identity))).code == Code.REVOKED


async def test_an_identity_whose_record_is_of_an_earlier_cluster_opens_nothing(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        name = agent.identity.reply.agent
        await server.services.agents.update("edge-1", name, lambda held: dataclasses.replace(held, uid="earlier"))
        error = await refused(Agent(server, agent.identity))
        assert error.code == Code.REVOKED
        assert "belongs to a deleted cluster of the same name" in error.text


async def test_an_expired_identity_may_renew_and_nothing_else(tmp_path):
    async with running(tmp_path) as server:
        identity = await enrol(server, await server.add("edge-1"))
        old = server.services.authority.issue_agent(
            "edge-1", identity.reply.agent, public_key=identity.key.public_key(), at=time.time() - 30 * DAY
        )
        agent = Agent(server, replaced(identity, chain=old.chain_pem))
        tunnel = await agent.connect()
        assert tunnel.renew_only
        member = server.member("edge-1")
        assert member.pick() is None
        assert (member.verdict.state, member.verdict.code) == ("AuthFailed", "TWR502")
        assert (await call(server, "edge-1")).status == 503

        await agent.report(version="v0", services={"kubesphere": "x:1"})
        agent.control.send("renew", id="1", **renewal(identity))
        await until(lambda: agent.control.of("renewed"))
        renewed = agent.control.of("renewed")[0]
        assert not member.report
        await agent.close()
        fresh = Agent(server, replaced(identity, chain=renewed["chain"].encode()))
        assert not (await fresh.connect()).renew_only
        assert member.verdict.state != "AuthFailed"
        await fresh.close()


async def test_an_identity_that_expired_long_ago_is_refused(tmp_path):
    async with running(tmp_path) as server:
        identity = await enrol(server, await server.add("edge-1"))
        old = server.services.authority.issue_agent(
            "edge-1", identity.reply.agent, public_key=identity.key.public_key(), at=time.time() - 120 * DAY
        )
        error = await refused(Agent(server, replaced(identity, chain=old.chain_pem)))
        assert error.code == Code.EXPIRED
        verdict = server.member("edge-1").verdict
        assert (verdict.state, verdict.code) == ("AuthFailed", "TWR502")
        assert "expired" in verdict.cause


async def test_a_storm_is_turned_away_with_a_time_to_come_back(tmp_path):
    async with running(tmp_path, admission={"handshakes_per_second": 0.1, "handshake_burst": 1}) as server:
        identity = await enrol(server, await server.add("edge-1"))
        first = Agent(server, identity)
        await first.connect()
        error = await refused(Agent(server, identity))
        assert error.code == Code.BUSY
        assert error.retry_after is not None
        assert 1 <= error.retry_after <= 10
        assert (await call(server, "edge-1")).status == 200
        await first.close()


async def test_a_newer_tunnel_of_the_same_process_replaces_the_older(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        again = Agent(server, agent.identity, instance=agent.instance)
        await again.connect()
        await until(lambda: agent.closed)
        assert agent.closed[0].code is Code.REPLACED
        beside = Agent(server, agent.identity)
        await beside.connect()
        assert len(server.member("edge-1").tunnels) == 2
        await again.close()
        await beside.close()


async def test_the_record_follows_renewals_and_last_sight(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await until(lambda: agent.control is not None)
        key = generate_key()
        agent.control.send("renew", id="1", **renewal(agent.identity, key=key))
        await until(lambda: agent.control.of("renewed"))
        assert len(load_chain(agent.control.of("renewed")[0]["serving_chain"].encode())) == 2
        await agent.close()
        await until(lambda: not server.member("edge-1").tunnels)
        await server.services.clusters.save()
        record = AgentRecord.read((await server.services.store.list(Kind.AGENT)).items[0])
        assert record.key == key_fingerprint(key.public_key())
        assert record.name == agent.identity.reply.agent  # it stays the one that it was under another key
        assert record.renewed is not None
        assert record.seen is not None
        assert record.version == "test"


@pytest.mark.slow
async def test_many_handshakes_at_once_are_all_let_in(tmp_path):
    async with running(tmp_path) as server:
        identity = await enrol(server, await server.add("edge-1"))
        agents = [Agent(server, identity) for _ in range(20)]
        await asyncio.gather(*(agent.connect() for agent in agents))
        assert len(server.member("edge-1").tunnels) == 20
        for agent in agents:
            await agent.close()


async def test_agents_of_clusters_that_are_gone_are_tidied_away(tmp_path):
    async with running(tmp_path) as server:
        await enrol(server, await server.add("edge-1"))
        kept = await server.services.agents.list()
        await server.services.agents.enrol(dataclasses.replace(kept[0], cluster="edge-0", uid="gone"))
        await server.services.agents.tidy()
        assert await server.services.agents.list() == kept


async def test_a_tunnel_is_not_closed_for_an_identity_that_was_renewed_but_for_one_that_was_not(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent, joined(server, "edge-2") as other:
        agents, past = server.services.agents, time.time() + 8 * DAY
        later = past + DAY
        await agents.update(
            "edge-2", other.identity.reply.agent, lambda held: dataclasses.replace(held, identity_expires=later)
        )
        await agents.close_expired(at=past)
        await until(lambda: agent.closed)
        assert agent.closed[0].code is Code.EXPIRED
        assert "expired at" in agent.closed[0].text
        assert "renew" in agent.closed[0].text
        assert not other.closed
        assert server.member("edge-1").last_close.code == "EXPIRED"
        await agents.close_expired(at=later + 1)
        await until(lambda: other.closed)


async def test_who_proves_nothing_changes_nothing_but_the_history(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent, joined(server, "edge-2") as other:
        member, identity = server.member("edge-1"), agent.identity
        agents = server.services.agents
        revoked = other.identity.reply.agent
        await agent.close()
        await until(lambda: not member.tunnels)
        assert member.verdict.state == "TunnelDown"
        stranger = Authority.create("hq", at=time.time()).issue_agent(
            "edge-1", "a1", public_key=identity.key.public_key(), at=time.time()
        )
        old = server.services.authority.issue_agent(
            "edge-1", identity.reply.agent, public_key=identity.key.public_key(), at=time.time() - 120 * DAY
        )
        await agents.revoke("edge-2", revoked)
        for chain, key, code in (
            (stranger.chain_pem, identity.key, Code.UNTRUSTED),
            (identity.reply.chain, generate_key(), Code.BAD_SIGNATURE),
            (old.chain_pem, generate_key(), Code.BAD_SIGNATURE),
        ):
            shown = dataclasses.replace(replaced(identity, chain=chain), key=key)
            assert (await refused(Agent(server, shown, instance=code.name))).code == code
            assert (member.history[0].event, member.history[0].agent) == ("refused", code.name)
            assert member.verdict.state == "TunnelDown", code


async def away(_kind, _name):
    raise TowerError("TWR114", "api:6443 did not answer within 5 s")


async def silent(_kind, _name):
    await asyncio.sleep(agents.KNOWN_PATIENCE + 3.0)
    return await away(_kind, _name)


@pytest.mark.slow
@pytest.mark.parametrize("store", [away, silent])
async def test_while_records_cannot_be_read_an_agent_may_come_back_and_a_new_one_waits(tmp_path, monkeypatch, store):
    """One that comes back is let in before those who call for it are told that it is gone, whoever says nothing."""
    monkeypatch.setattr(agents, "KNOWN_PATIENCE", 0.2)
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        other = await enrol(server, await server.add("edge-2"))
        await agent.close()
        await until(lambda: not server.member("edge-1").tunnels)
        with monkeypatch.context() as outage:
            outage.setattr(server.services.store, "get", store)
            again = Agent(server, agent.identity)
            asked = asyncio.create_task(call(server, "edge-1"))
            await again.connect()
            assert (await asked).status == 200
            if store is away:
                with pytest.raises(DialError, match="cannot read its records now") as caught:
                    await Agent(server, other).connect()
                assert caught.value.retry_after
        await again.close()


async def test_a_revoked_agent_does_not_come_back_while_records_cannot_be_read(tmp_path, monkeypatch):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        (name,) = [each.name for each in await server.services.agents.list("edge-1")]
        await server.services.agents.revoke("edge-1", name)
        await until(lambda: agent.closed)
        with monkeypatch.context() as outage:
            outage.setattr(server.services.store, "get", away)
            with pytest.raises(DialError):
                await Agent(server, agent.identity).connect()


async def test_no_agent_of_an_earlier_cluster_comes_back_while_records_cannot_be_read(tmp_path, monkeypatch):
    """Another server that shares the store has made the cluster anew, and word of its revocations is not here yet."""
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        members, store = server.services.registry.members, server.services.store
        async with following(server):
            held = await store.get(Kind.CLUSTER, "edge-1")
            await store.update(Kind.CLUSTER, "edge-1", {**held.data, "uid": "another"}, expect=held.version)
            await until(lambda: "edge-1" in members and members["edge-1"].uid == "another")
            await until(lambda: agent.closed)
            with monkeypatch.context() as outage:
                outage.setattr(store, "get", away)
                error = await refused(Agent(server, agent.identity))
            assert error.code == Code.INTERNAL
            assert "cannot read its records now" in error.text
