"""Records survive being written down, also by a server of another age."""

import json

import pytest

from tower_server.records import Agent, Claim, Cluster, Enrolled, Token
from tower_server.store.base import Record, Version

CLUSTER = Cluster(name="edge-1", uid="u1", created=1.5, ports={"kubernetes": 6012}, serving_names=("10.0.0.7",))
TOKEN = Token(
    id="abc",
    cluster="edge-1",
    uid="u1",
    secret_hash="00",
    created=1.0,
    expires=2.0,
    uses=1,
    keys={"aa": Enrolled("a1", 1.5, "bb", "chain", "serving", 8.0, 9.0)},
)
AGENT = Agent(
    name="a1", cluster="edge-1", uid="u1", key="aa", created=1.0, token="abc", identity_expires=9.0, serving_expires=9.0
)


@pytest.mark.parametrize("value", [CLUSTER, TOKEN, AGENT, Claim("edge-1", "u1", "kubernetes")])
def test_what_is_written_is_read_back(value):
    written = json.loads(json.dumps(value.data()))
    assert type(value).read(Record(value.KIND, "x", Version("1"), written)) == value


def test_a_record_of_an_older_server_takes_the_defaults():
    read = Cluster.read(Record(Cluster.KIND, "a", Version("1"), {"name": "a", "uid": "u", "created": 1}))
    assert read == Cluster(name="a", uid="u", created=1)


def test_a_key_of_a_newer_server_is_left_out():
    read = Claim.read(
        Record(Claim.KIND, "port-1", Version("1"), {"cluster": "a", "uid": "u", "service": "s", "new": 1})
    )
    assert read == Claim("a", "u", "s")


def test_names_of_agents_of_two_clusters_never_meet():
    a = Agent(**{**AGENT.data(), "cluster": "a", "name": "b-c"})
    b = Agent(**{**AGENT.data(), "cluster": "a-b", "name": "c"})
    assert a.record_name != b.record_name
