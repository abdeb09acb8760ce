"""The control stream: revocations out, heartbeats and renewals in, and what a broken one leads to."""

import asyncio
import base64
import contextlib
import socket
import time
from dataclasses import replace

import pytest

from certs.keys import generate_key, make_csr
from certs.revocation import verify_list
from certs.verify import TrustBundle, load_chain
from protocol.constants import Code
from tests.tower_server.kit import admin, call, following, joined, renewal, running
from tests.waiting import until
from tower_server import control
from tower_server.records import Cluster
from tower_server.store.base import Kind

pytestmark = pytest.mark.asyncio


def lists(agent):
    bundle = TrustBundle.from_pem(agent.identity.reply.trust)
    return [
        verify_list(base64.b64decode(message["list"]), issuers=bundle.revocation_keys(), host="hq")
        for message in agent.control.of("revocations")
    ]


async def test_the_list_is_sent_at_once_and_after_every_change(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent, joined(server, "edge-2") as other:
        await until(lambda: agent.control is not None and agent.control.of("revocations"))
        before = lists(agent)[-1].number
        await admin(server, "POST", "/v1/callers/alice/revoke")
        await until(lambda: lists(agent)[-1].users and lists(other)[-1].users)
        newest = lists(agent)[-1]
        assert newest.number > before
        assert set(newest.users) == {"alice"}
        assert newest.agents == {}  # other members' agents are none of a member's business


async def test_what_an_agent_reports_is_shown(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        probe = {"ready": True, "at": 1767225600.5, "version": "v1.35.4", "uid": "u", "nodes": 3}
        await agent.report(probe=probe, services={}, identity_expires=1767225601, serving_expires=1e300)
        await until(lambda: server.member("edge-1").report)
        view = (await admin(server, "GET", "/v1/clusters/edge-1")).json()["member"]
        assert (view["version"], view["nodes"]) == ("v1.35.4", 3)
        assert (view["probe"]["at"], view["identity_expires"]) == ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z")
        assert view["serving_expires"] is None, "no clock shows that"


@pytest.mark.slow
async def test_a_declared_service_without_a_free_port_is_no_end_of_the_server(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        first, last = (port + server.config.ports.kubesphere_offset for port in server.config.ports.range)
        with contextlib.ExitStack() as taken:
            for port in range(first, last + 1):
                with contextlib.suppress(OSError):  # taken by somebody else is as good
                    taken.enter_context(socket.create_server(("127.0.0.1", port)))
            await agent.report(services={"kubesphere": {"address": "ks:80"}})
            await until(lambda: server.member("edge-1").report)
            assert (await call(server, "edge-1")).status == 200
            await asyncio.sleep(0.2)
        assert not server.process.stop.is_set()
        assert [port.service for port in server.services.clusters.ports.of("edge-1")] == ["kubernetes"]


async def test_what_fails_for_one_agent_ends_nothing_of_the_others(tmp_path, monkeypatch):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent, joined(server, "edge-2"):
        await until(lambda: agent.control is not None)

        async def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(server.services.agents, "renew", broken)
        agent.control.send("renew", id="1", **renewal(agent.identity))
        await until(lambda: not server.member("edge-1").tunnels[0].data["control"]._renewing)
        await asyncio.sleep(0.05)
        assert not server.process.stop.is_set()
        assert (await call(server, "edge-2")).status == 200


async def test_a_renewal_gives_certificates_for_the_new_keys(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await until(lambda: agent.control is not None)
        key, serving = generate_key(), generate_key()
        agent.control.send("renew", id="7", **renewal(agent.identity, key=key, serving_key=serving))
        await until(lambda: agent.control.of("renewed"))
        answer = agent.control.of("renewed")[0]
        assert answer["id"] == "7"
        bundle = TrustBundle.from_pem(agent.identity.reply.trust)

        identity = bundle.verify_agent(load_chain(answer["chain"].encode()), time.time())
        assert identity.agent == agent.identity.reply.agent
        assert identity.public_key.public_numbers() == key.public_key().public_numbers()
        assert bundle.verify_serving(load_chain(answer["serving_chain"].encode()), time.time()).cluster == "edge-1"


@pytest.mark.parametrize("csr", [None, 7, "", "no csr", "x" * 9000])
async def test_a_bad_request_to_renew_is_refused_and_the_tunnel_lives(tmp_path, csr):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await until(lambda: agent.control is not None)
        agent.control.send("renew", id="1", csr=csr, serving_csr=csr, proof="")
        await until(lambda: agent.control.of("refused"))
        refused = agent.control.of("refused")[0]
        assert (refused["id"], refused["code"]) == ("1", "TWR505")
        assert (await call(server, "edge-1")).status == 200


async def test_reports_have_a_rate_and_those_beyond_it_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(control, "REPORT_BURST", 2)
    monkeypatch.setattr(control, "REPORT_RATE", 0.001)
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await until(lambda: agent.control is not None and agent.control.of("revocations"))
        for number in range(4):
            agent.control.send("status", version=f"v{number}")
        agent.control.send("renew", id="behind", **renewal(agent.identity))
        await until(lambda: agent.control.of("renewed"))
        assert server.member("edge-1").report == {"version": "v1"}
        assert b'tower_throttled_total{limit="reports"} 2.0' in server.services.metrics.render()


async def test_renewals_of_one_cluster_have_a_rate_and_those_of_others_are_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(control, "RENEWAL_BURST", 2)
    monkeypatch.setattr(control, "RENEWAL_RATE", 0.001)
    async with running(tmp_path) as server, joined(server, "edge-1") as evil, joined(server, "edge-2") as good:
        for number in range(4):
            evil.control.send("renew", id=str(number), **renewal(evil.identity))
            await until(lambda heard=number + 1: len(evil.control.of("renewed") + evil.control.of("refused")) == heard)
        assert [each["id"] for each in evil.control.of("renewed")] == ["0", "1"]
        refused = evil.control.of("refused")
        assert [(each["id"], each["code"]) for each in refused] == [("2", "TWR504"), ("3", "TWR504")]
        assert "more than 0.001 times a second" in refused[0]["text"]
        good.control.send("renew", id="g", **renewal(good.identity))
        await until(lambda: good.control.of("renewed"))


async def test_an_agent_that_asks_and_does_not_read_is_answered_no_further_until_it_reads(tmp_path):
    """Its answers would be kept in the server's memory, which is all members'."""
    asked = 20_000
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await until(lambda: agent.control is not None and agent.control.of("revocations"))
        agent.control.transport.pause_reading()
        answers = server.member("edge-1").tunnels[0].data["control"]._transport
        for number in range(asked):
            agent.control.send("renew", id=f"{number:0>64}")
        await until(lambda: answers.get_write_buffer_size() > 0)
        kept = 0
        while kept < answers.get_write_buffer_size():  # until it is no more than it was
            kept = answers.get_write_buffer_size()
            for _ in range(5):
                await call(server, "edge-1")
        assert kept < 1024 * 1024
        agent.control.transport.resume_reading()
        await until(lambda: len(agent.control.of("refused")) == asked)


async def test_a_renewal_that_the_agent_did_not_sign_gives_nothing(tmp_path):
    """Whoever ends the link's TLS in between can write into the control stream, and must get no certificate by it."""
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await until(lambda: agent.control is not None)
        own, middle = renewal(agent.identity), make_csr(generate_key()).decode()
        for fields in (
            {**own, "proof": None},
            {**own, "proof": "?"},
            {**own, "proof": ""},
            {**own, "csr": middle},
            {**own, "serving_csr": middle},
            {"csr": middle, "serving_csr": middle},
        ):
            agent.control.send("renew", id="1", **fields)
            await until(lambda: agent.control.of("refused"))
            assert agent.control.of("refused")[0]["code"] == "TWR505", fields
            agent.control.heard.clear()
        assert not agent.control.of("renewed")
        agent.control.send("renew", id="2", **own)
        await until(lambda: agent.control.of("renewed"))


async def test_one_renewal_of_a_tunnel_is_under_way_at_a_time(tmp_path, monkeypatch):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await until(lambda: agent.control is not None)
        renew, free = server.services.agents.renew, asyncio.Event()

        async def slow(*arguments, **named):
            await free.wait()
            return await renew(*arguments, **named)

        monkeypatch.setattr(server.services.agents, "renew", slow)
        agent.control.send("renew", id="1", **renewal(agent.identity))
        agent.control.send("renew", id="2", **renewal(agent.identity))
        await until(lambda: agent.control.of("refused"))
        refused = agent.control.of("refused")[0]
        assert (refused["id"], refused["code"]) == ("2", "TWR504")
        assert "under way already" in refused["text"]
        free.set()
        await until(lambda: agent.control.of("renewed"))
        assert [each["id"] for each in agent.control.of("renewed")] == ["1"]


@pytest.mark.parametrize("change", [{"revoked": 1.0}, {"uid": "of-an-earlier-cluster"}])
async def test_nobody_renews_whose_record_is_revoked_or_of_another_cluster(tmp_path, change):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await until(lambda: agent.control is not None)
        name = agent.identity.reply.agent
        await server.services.agents.update("edge-1", name, lambda held: replace(held, **change))
        agent.control.send("renew", id="1", **renewal(agent.identity))
        await until(lambda: agent.control.of("refused"))
        assert agent.control.of("refused")[0]["code"] == "TWR209"
        assert not agent.control.of("renewed")


async def test_an_agent_that_reads_late_gets_the_newest_list_once(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await until(lambda: agent.control is not None and agent.control.of("revocations"))
        agent.control.heard.clear()
        stream = server.member("edge-1").tunnels[0].data["control"]
        stream.pause_writing()
        for user in ("alice", "bob"):
            await server.services.revocations.revoke_user(user, at=time.time())
        stream.resume_writing()
        agent.control.send("renew", id="behind", **renewal(agent.identity))
        await until(lambda: agent.control.of("renewed"))
        [sent] = lists(agent)
        assert set(sent.users) == {"alice", "bob"}


async def test_unknown_messages_are_skipped(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await until(lambda: agent.control is not None)
        agent.control.send("of-a-newer-agent", anything=1)
        await agent.report(services={}, probe={"version": "v2"})
        await until(lambda: server.member("edge-1").report)
        assert agent.closed == []


@pytest.mark.parametrize("line", [b"no json\n", b"[]\n", b'{"no": "type"}\n', b"x" * 300_000])
async def test_a_peer_that_breaks_the_form_loses_its_tunnel_only(tmp_path, line):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent, joined(server, "edge-2"):
        await until(lambda: agent.control is not None)
        agent.control.transport.write(line)
        await until(lambda: agent.closed)
        assert agent.closed[0].code in (Code.PROTOCOL, Code.TOO_LARGE)
        assert (await call(server, "edge-2")).status == 200


async def test_a_tunnel_without_its_control_stream_is_closed(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await until(lambda: agent.control is not None)
        agent.control.transport.abort()
        await until(lambda: agent.closed)
        assert "control stream" in agent.closed[0].text


@pytest.mark.slow
async def test_the_same_list_is_sent_again_freshly_signed(tmp_path, monkeypatch):
    monkeypatch.setattr("tower_server.housekeeping.EVERY", 0.05)
    monkeypatch.setattr("protocol.defaults.REVOCATIONS_EVERY", 0.2)
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await admin(server, "POST", "/v1/callers/alice/revoke")
        await until(lambda: agent.control is not None and len(lists(agent)) >= 4)
        *_, before, last = lists(agent)
        assert (before.number, before.users) == (last.number, last.users)
        assert "alice" in last.users
        assert last.issued_at > before.issued_at


async def test_an_agent_hears_by_which_names_its_callers_come_and_of_each_change_once(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        clusters = server.services.clusters
        record = await server.services.store.get(Kind.CLUSTER, "edge-1")
        cluster = replace(Cluster.read(record), service_names=("10.96.0.9",))
        await server.services.store.update(Kind.CLUSTER, "edge-1", cluster.data(), expect=record.version)
        async with following(server):
            await until(lambda: agent.control is not None and agent.control.of("names"))
            assert [message["names"] for message in agent.control.of("names")] == [["10.96.0.9"]]
            for observer in list(clusters._observers):
                observer("MODIFIED", "edge-1")
            await asyncio.sleep(0.1)
            assert len(agent.control.of("names")) == 1
