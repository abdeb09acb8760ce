"""Joining: what a token gives, to whom, how often, and how each refusal differs."""

import asyncio
import json

import pytest
from cryptography import x509

from certs.keys import generate_key
from certs.token import EnrolmentToken, parse_token
from daemon.log import configure
from tests.tower_server.kit import Agent, Refused, admin, enrol, http, running
from tower_server.store.base import Kind

pytestmark = pytest.mark.asyncio


async def refusal(server, token, **keys) -> Refused:
    with pytest.raises(Refused) as caught:
        await enrol(server, token, **keys)
    return caught.value


async def test_the_same_key_gets_the_same_answer_again(tmp_path):
    async with running(tmp_path) as server:
        token, key, serving_key = await server.add("edge-1"), generate_key(), generate_key()
        first = await enrol(server, token, key=key, serving_key=serving_key)
        again = await enrol(server, token, key=key, serving_key=serving_key)
        assert again.reply.chain == first.reply.chain
        assert again.reply.serving_chain == first.reply.serving_chain
        assert len((await admin(server, "GET", "/v1/agents")).json()["items"]) == 1
        assert len(first.reply.agent) == 20  # 80 bits of its key: nobody makes another key of that name


async def test_another_key_finds_the_token_used(tmp_path):
    async with running(tmp_path) as server:
        token = await server.add("edge-1")
        await enrol(server, token)
        refused = await refusal(server, token)
        assert (refused.answer.status, refused.code) == (401, "TWR206")
        assert token.secret.encode() not in refused.answer.body


async def test_the_same_key_with_another_serving_key_is_refused(tmp_path):
    async with running(tmp_path) as server:
        token, key = await server.add("edge-1"), generate_key()
        await enrol(server, token, key=key)
        assert (await refusal(server, token, key=key)).code == "TWR206"


@pytest.mark.slow
async def test_of_fifty_at_once_one_key_gets_in(tmp_path):
    async with running(tmp_path) as server:
        token = await server.add("edge-1")
        results = await asyncio.gather(*(enrol(server, token) for _ in range(50)), return_exceptions=True)
        got_in = [result for result in results if not isinstance(result, BaseException)]
        assert len(got_in) == 1
        assert {result.code for result in results if isinstance(result, Refused)} == {"TWR206"}
        agents = (await admin(server, "GET", "/v1/agents")).json()["items"]
        assert [agent["name"] for agent in agents] == [got_in[0].reply.agent]


async def test_a_token_of_several_uses_lets_in_as_many_keys(tmp_path):
    async with running(tmp_path) as server:
        token = await server.add("edge-1", uses=3)
        results = await asyncio.gather(*(enrol(server, token) for _ in range(5)), return_exceptions=True)
        assert sum(not isinstance(result, BaseException) for result in results) == 3


async def test_unknown_wrong_revoked_and_expired_tokens_are_told_apart(tmp_path):
    async with running(tmp_path) as server:
        token = await server.add("edge-1")
        fresh = EnrolmentToken.create(url=token.url, cluster="edge-1", ca=token.ca)
        unknown = await refusal(server, fresh)
        wrong = await refusal(server, EnrolmentToken(token.url, token.cluster, token.id, fresh.secret, token.ca))
        # who does not have the secret cannot learn which tokens exist
        assert unknown.answer.body == wrong.answer.body
        assert unknown.code == "TWR204"

        await admin(server, "DELETE", f"/v1/tokens/{token.id}")
        assert (await refusal(server, token)).code == "TWR208"

        answer = await admin(server, "POST", "/v1/clusters/edge-1/tokens", {"ttl": 1.0})
        assert answer.status == 201
        short = answer.json()
        record = await server.services.store.get(Kind.TOKEN, short["id"])
        past = {**record.data, "expires": record.data["created"]}
        await server.services.store.update(record.kind, record.name, past, expect=record.version)
        expired = await refusal(server, parse_token(short["token"]))
        assert (expired.answer.status, expired.code) == (401, "TWR205")


async def test_a_token_dies_with_its_cluster_also_when_one_of_that_name_comes_back(tmp_path):
    async with running(tmp_path) as server:
        token = await server.add("edge-1")
        await admin(server, "DELETE", "/v1/clusters/edge-1")
        assert (await refusal(server, token)).code == "TWR204"
        await server.add("edge-1")
        assert (await refusal(server, token)).code == "TWR204"


async def test_a_token_gives_no_answer_again_once_its_cluster_is_gone(tmp_path):
    """Also where whoever deleted the cluster died before its tokens were gone."""
    async with running(tmp_path) as server:
        token, keys = await server.add("edge-1"), {"key": generate_key(), "serving_key": generate_key()}
        await enrol(server, token, **keys)
        await server.services.store.delete(Kind.CLUSTER, "edge-1")
        gone = await refusal(server, token, **keys)
        assert (gone.answer.status, gone.code) == (401, "TWR208")


async def test_a_revoked_agent_does_not_come_back_by_its_old_token(tmp_path):
    async with running(tmp_path) as server:
        token, key, serving_key = await server.add("edge-1"), generate_key(), generate_key()
        identity = await enrol(server, token, key=key, serving_key=serving_key)
        await admin(server, "POST", f"/v1/agents/edge-1/{identity.reply.agent}/revoke")
        refused = await refusal(server, token, key=key, serving_key=serving_key)
        assert (refused.answer.status, refused.code) == (403, "TWR209")


async def test_no_token_from_before_a_revocation_takes_it_back(tmp_path):
    async with running(tmp_path) as server:
        first, keys = await server.add("edge-1"), {"key": generate_key(), "serving_key": generate_key()}
        identity = await enrol(server, first, **keys)
        made = await admin(server, "POST", "/v1/clusters/edge-1/tokens", {})
        second = parse_token(made.json()["token"])
        await enrol(server, second, **keys)
        await admin(server, "POST", f"/v1/agents/edge-1/{identity.reply.agent}/revoke")
        for token in (first, second):
            assert (await refusal(server, token, **keys)).code == "TWR209"
        (shown,) = (await admin(server, "GET", "/v1/agents")).json()["items"]
        assert shown["revoked"] is not None


async def test_too_many_enrolments_are_told_when_to_come_back(tmp_path):
    async with running(tmp_path, admission={"enrolments_per_second": 0.1, "enrolment_burst": 1}) as server:
        token = await server.add("edge-1", uses=2)
        await enrol(server, token)
        refused = await refusal(server, token)
        assert (refused.answer.status, refused.code) == (429, "TWR221")
        assert 1 <= int(refused.answer.headers["retry-after"]) <= 10
        left = await http(server, "POST", "/v1/leave", b"{}")  # what costs as much has the same bound
        assert (left.status, left.json()["code"]) == (429, "TWR221")
        assert b'tower_throttled_total{limit="enrolments"} 2.0' in server.services.metrics.render()


async def test_a_malformed_body_is_a_clear_refusal(tmp_path):
    cases = [b"", b"{", b"[]", b'{"id": 1}', b"\xff" * 100, b"[" * 60_000]
    async with running(tmp_path) as server:
        for body in cases:
            answer = await http(server, "POST", "/v1/enrolment", body)
            assert answer.status == 400
            assert answer.json()["kind"] == "Error"
            assert answer.json()["mend"]


async def test_half_a_character_in_the_sealed_part_is_a_clear_refusal_too(tmp_path):
    async with running(tmp_path) as server:
        token = await server.add("edge-1")
        object.__setattr__(token, "secret", "\ud800")
        refused = await refusal(server, token)
        assert (refused.answer.status, refused.code) == (400, "TWR224")
        assert "'secret' holds half a character" in refused.answer.json()["message"]


async def test_what_is_not_enrolment_is_not_found(tmp_path):
    async with running(tmp_path) as server:
        assert (await http(server, "GET", "/")).status == 404
        assert (await http(server, "GET", "/v1/clusters")).status == 404
        answer = await http(server, "DELETE", "/v1/enrolment")
        assert (answer.status, answer.headers["allow"]) == (405, "GET, POST")


async def test_names_of_the_serving_certificate_are_the_servers_decision(tmp_path):
    async with running(tmp_path) as server:
        token = await server.add("edge-1", serving_names=["api.edge-1.example.com"])
        identity = await enrol(server, token)
        leaf = x509.load_pem_x509_certificate(identity.reply.serving_chain)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert set(names.get_values_for_type(x509.DNSName)) == {"edge-1.members.tower", "api.edge-1.example.com"}


async def test_no_secret_reaches_the_store_or_the_log(tmp_path, capsys):
    configure(style="json")
    async with running(tmp_path) as server:
        token = await server.add("edge-1")
        await enrol(server, token)
        await refusal(server, token)
    said = capsys.readouterr()
    written = (tmp_path / "state" / "tower.db").read_bytes()
    for place in (written, said.err.encode(), said.out.encode()):
        assert token.secret.encode() not in place
        assert str(token).encode() not in place
    assert json.loads(said.err.splitlines()[0])


async def test_an_enrolled_agent_connects(tmp_path):
    async with running(tmp_path) as server:
        agent = Agent(server, await enrol(server, await server.add("edge-1")))
        await agent.connect()
        assert [t.peer.agent for _, t in server.services.registry] == [agent.identity.reply.agent]
        await agent.close()
