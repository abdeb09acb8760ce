"""The agent's manifest by the admin API."""

from __future__ import annotations

import pytest

from tests.tower_server.kit import admin, running

pytestmark = pytest.mark.asyncio
GRAFANA = "grafana.monitoring:3000"
PATH = "/v1/clusters/edge-1/manifest"


def of_kind(document, kind):
    return [each for each in document["items"] if each["kind"] == kind]


async def test_it_is_a_list_that_holds_a_token_which_can_be_used(tmp_path):
    async with running(tmp_path) as server:
        await server.add("edge-1")
        before = len((await admin(server, "GET", "/v1/tokens")).json()["items"])
        asked = {
            "namespace": "agents",
            "image": "registry.example.com/tower:1",
            "services": {"grafana": "grafana.monitoring:3000"},
        }
        answer = await admin(server, "POST", PATH, asked)
        assert answer.status == 201
        document = answer.json()
        assert (document["apiVersion"], document["kind"]) == ("v1", "List")
        (deployment,) = of_kind(document, "Deployment")
        assert deployment["metadata"]["namespace"] == "agents"
        assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.example.com/tower:1"
        assert GRAFANA in of_kind(document, "ConfigMap")[0]["data"]["agent.yaml"]
        (token,) = [each["stringData"]["token"] for each in of_kind(document, "Secret") if "stringData" in each]
        assert token.startswith("twr1.")
        assert len((await admin(server, "GET", "/v1/tokens")).json()["items"]) == before + 1


async def test_without_a_token_none_is_made(tmp_path):
    async with running(tmp_path) as server:
        await server.add("edge-1")
        before = len((await admin(server, "GET", "/v1/tokens")).json()["items"])
        document = (await admin(server, "POST", PATH, {"token": False})).json()
        assert not [each for each in of_kind(document, "Secret") if "stringData" in each]
        assert len((await admin(server, "GET", "/v1/tokens")).json()["items"]) == before


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"namespace": "No Good"}, "namespace"),
        ({"services": {"kubernetes": "a:1"}}, "services"),
        ({"services": {"x": "nowhere"}}, "services"),
        ({"replicas": 0}, "replicas"),
        ({"policy": {"users": "alice"}}, "policy"),
        ({"other": 1}, "other"),
    ],
)
async def test_what_makes_no_sense_is_named_and_makes_no_token(tmp_path, body, named):
    async with running(tmp_path) as server:
        await server.add("edge-1")
        before = len((await admin(server, "GET", "/v1/tokens")).json()["items"])
        answer = await admin(server, "POST", PATH, body)
        assert (answer.status, answer.json()["code"]) == (400, "TWR605")
        assert named in answer.json()["message"]
        assert len((await admin(server, "GET", "/v1/tokens")).json()["items"]) == before


async def test_without_a_public_url_it_says_how_to_set_one(tmp_path):
    async with running(tmp_path, public_url=None) as server:
        assert (await admin(server, "POST", "/v1/clusters", {"name": "edge-1", "join": False})).status == 201
        answer = await admin(server, "POST", PATH)
        assert answer.json()["code"] == "TWR111"
        assert "public_url" in answer.json()["mend"]


async def test_a_cluster_of_a_resource_is_deleted_where_the_resource_is(tmp_path):
    from dataclasses import replace

    from tower_server.records import Cluster
    from tower_server.store.base import Kind

    async with running(tmp_path) as server:
        await server.add("edge-1")
        record = await server.services.store.get(Kind.CLUSTER, "edge-1")
        followed = replace(Cluster.read(record), resource="uid-of-the-resource")
        server.services.clusters._records["edge-1"] = followed
        answer = await admin(server, "DELETE", "/v1/clusters/edge-1")
        assert (answer.status, answer.json()["code"]) == (400, "TWR605")
        assert "kubectl delete" in answer.json()["mend"]
        assert "edge-1" in server.services.clusters.names()
