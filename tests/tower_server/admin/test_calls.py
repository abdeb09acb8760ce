"""What the calls of the admin API give to those who ask rightly."""

import ssl
import time

import pytest

from certs.keys import generate_key, make_csr
from certs.token import parse_token
from certs.verify import TrustBundle, load_chain
from tests.tower_server.kit import admin, joined, running
from tests.waiting import until
from tower_server.store.base import Kind

pytestmark = pytest.mark.asyncio


async def test_adding_prints_one_command_with_the_token(tmp_path):
    async with running(tmp_path) as server:
        document = (await admin(server, "POST", "/v1/clusters", {"name": "edge-1"})).json()
        join = document["join"]
        token = parse_token(join["token"])
        assert (token.cluster, token.url) == ("edge-1", server.config.public_url)
        assert join["command"] == f"echo '{join['token']}' | tower-agent join"
        assert (join["uses"], join["used"], join["state"]) == (1, 0, "Valid")
        listed = (await admin(server, "GET", "/v1/tokens")).json()["items"]
        assert [item["id"] for item in listed] == [token.id]
        assert token.secret not in str(listed)


async def test_without_a_public_url_adding_says_how_to_set_one_and_adds_nothing(tmp_path):
    async with running(tmp_path, public_url=None) as server:
        answer = await admin(server, "POST", "/v1/clusters", {"name": "edge-1"})
        assert (answer.status, answer.json()["code"]) == (409, "TWR111")
        assert "public_url" in answer.json()["mend"]
        assert server.services.clusters.names() == []
        assert (await admin(server, "POST", "/v1/clusters", {"name": "edge-1", "join": False})).status == 201


async def test_a_credential_is_for_the_key_that_asked_and_no_longer_than_asked(tmp_path):
    async with running(tmp_path) as server:
        await server.add("edge-1")
        key = generate_key()
        body = {"csr": make_csr(key).decode(), "user": "alice", "groups": ["devs"], "ttl": 600.0}
        answer = await admin(server, "POST", "/v1/clusters/edge-1/credentials", body)
        assert answer.status == 201
        document = answer.json()
        bundle = TrustBundle.from_pem(server.services.authority.bundle.to_pem())
        client = bundle.verify_client(load_chain(document["chain"].encode()), time.time())
        assert (client.user, client.groups) == ("alice", ("devs",))
        assert client.not_after - time.time() < 601
        assert document["tls_server_name"] == "edge-1.members.tower"
        assert document["server"] == f"https://localhost:{server.port('edge-1')}"
        assert document["ca"].startswith("-----BEGIN CERTIFICATE-----")


async def test_without_a_user_the_credential_is_the_hosts_admin(tmp_path):
    async with running(tmp_path) as server:
        await server.add("edge-1")
        body = {"csr": make_csr(generate_key()).decode()}
        document = (await admin(server, "POST", "/v1/clusters/edge-1/credentials", body)).json()
        assert (document["user"], document["groups"]) == ("tower:hq:admin", ["tower:hq:cluster-admins"])


async def test_what_a_host_may_not_issue_it_does_not(tmp_path):
    cases = [
        {"csr": "no csr"},
        {"csr": "CSR", "user": "system:admin"},
        {"csr": "CSR", "user": "tower:other:admin"},
        {"csr": "CSR", "user": "a\nb"},
        {"csr": "CSR", "groups": ["system:masters"]},
        {"csr": "CSR", "ttl": 1e9},
        {"csr": "CSR", "ttl": 0.0},
    ]
    async with running(tmp_path) as server:
        await server.add("edge-1")
        for body in cases:
            body = {**body, "csr": make_csr(generate_key()).decode() if body["csr"] == "CSR" else body["csr"]}
            answer = await admin(server, "POST", "/v1/clusters/edge-1/credentials", body)
            assert (answer.status, answer.json()["code"]) == (400, "TWR505")


async def test_tunnels_streams_and_agents_are_listed(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent, joined(server, "edge-2"):
        tunnels = (await admin(server, "GET", "/v1/tunnels?cluster=edge-1")).json()["items"]
        assert [(t["cluster"], t["agent"], t["state"], t["version"]) for t in tunnels] == [
            ("edge-1", agent.identity.reply.agent, "Open", "test")
        ]
        await until(lambda: agent.control is not None)
        streams = (await admin(server, "GET", "/v1/streams?cluster=edge-1")).json()["items"]
        assert "tower.control" in [stream["service"] for stream in streams]
        agents = (await admin(server, "GET", "/v1/agents")).json()["items"]
        assert sorted((a["cluster"], a["tunnels"]) for a in agents) == [("edge-1", 1), ("edge-2", 1)]


async def test_revocations_are_listed_with_the_number(tmp_path):
    async with running(tmp_path) as server:
        await server.add("edge-1")
        await admin(server, "POST", "/v1/callers/alice%20b/revoke")
        first = (await admin(server, "GET", "/v1/revocations")).json()["number"]
        await admin(server, "POST", "/v1/certificates/1f/revoke")
        listing = (await admin(server, "GET", "/v1/revocations")).json()
        assert [(item["type"], item["name"]) for item in listing["items"]] == [
            ("caller", "alice b"),
            ("certificate", "1f"),
        ]
        assert listing["number"] > first
        for wrong in ("callers/%0a/revoke", "certificates/xyz/revoke", "certificates/-1/revoke"):
            assert (await admin(server, "POST", f"/v1/{wrong}")).status == 400


async def test_ping_times_the_parts_apart_and_names_the_one_that_fails(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        began = time.monotonic()
        document = (await admin(server, "POST", "/v1/clusters/edge-1/ping")).json()
        took = time.monotonic() - began
        assert 0 < document["mux"] < took, "seconds"
        assert 0 < document["stream"] < document["readyz"] < took
        assert (document["status"], document["tunnel"]) == (200, agent.tunnel.id)
        agent.respond = lambda _: (500, b"etcd is away")
        answer = await admin(server, "POST", "/v1/clusters/edge-1/ping")
        assert (answer.status, answer.json()["code"]) == (503, "TWR302")
        await agent.close()
        await until(lambda: not server.member("edge-1").tunnels)
        assert (await admin(server, "POST", "/v1/clusters/edge-1/ping")).json()["code"] == "TWR201"


async def test_check_names_root_causes_only(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1"):
        await server.add("edge-2")
        await until(lambda: server.member("edge-1").verdict.state == "Connected")
        items = (await admin(server, "GET", "/v1/check")).json()["items"]
        status = {(item["name"], item["status"]) for item in items}
        assert {("store", "ok"), ("tunnel/edge-1", "ok"), ("readyz/edge-1", "ok")} <= status
        assert {("tunnel/edge-2", "failed"), ("readyz/edge-2", "skipped"), ("redundancy/edge-2", "skipped")} <= status
        only = (await admin(server, "GET", "/v1/check?cluster=edge-1")).json()["items"]
        assert {item["status"] for item in only} == {"ok"}


async def test_check_sees_an_agent_that_serves_without_a_record(tmp_path):
    """Its record was deleted behind the server's back: all is well until the link is cut, and then nothing is."""
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        name = agent.identity.reply.agent
        await server.services.agents._store.delete(Kind.AGENT, f"edge-1.{name}")
        items = (await admin(server, "GET", "/v1/check?cluster=edge-1")).json()["items"]
        (identity,) = [item for item in items if item["name"] == "identity/edge-1"]
        assert (identity["status"], identity["code"]) == ("failed", "TWR209")
        assert f"agent {name} serves, but its record is gone" in identity["message"]
        assert "`towerctl create token edge-1`" in identity["next"]


async def test_info_names_host_and_fingerprint(tmp_path):
    async with running(tmp_path) as server:
        document = (await admin(server, "GET", "/v1/info")).json()
        assert (document["host"], document["version"]) == ("hq", "0.0.0+test")
        assert document["listen"] == f"127.0.0.1:{server.tunnel_port}"
        assert len(document["ca_fingerprint"]) == 64
        assert ssl.create_default_context(cadata=document["ca"]).cert_store_stats()["x509_ca"] == 1


async def test_in_a_pod_callers_are_told_the_service_of_their_cluster(tmp_path):
    async with running(tmp_path) as server:
        await server.add("edge")
        server.services.callers_address, server.services.namespace = "", "tower-system"
        connection = (await admin(server, "GET", "/v1/clusters/edge/connection")).json()
        assert connection["server"] == "https://mc-edge.tower-system.svc:6443"
