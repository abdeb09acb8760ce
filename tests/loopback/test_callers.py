"""Who a caller is, seen from both ends: what the member's apiserver is shown, and what a caller is refused with."""

from __future__ import annotations

import base64
import json
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from certs.ca import Authority
from tests.lab.world import TowerWorld
from tests.loopback import forgery
from tests.loopback.backend import TOKEN
from tests.loopback.callers import Caller, context_of, get_as, logs, moves, ticks_until_end
from tests.loopback.conftest import EDGE, OTHER
from tests.loopback.member import AGENT, BackendMember

pytestmark = pytest.mark.usefixtures("bystanders")
BOTH = pytest.mark.parametrize("cluster", [EDGE, OTHER], ids=["agent-by-certificate", "agent-by-token"])
GARBAGE = "Authorization: Bearer garbage-b84c3f"
MASTERS = "Impersonate-Group: system:masters"


@pytest.fixture
def caller_of(admin: Caller, neighbour: Caller) -> Callable[[str], Caller]:
    return lambda cluster: {EDGE: admin, OTHER: neighbour}[cluster]


def person(world: TowerWorld, name: str) -> Caller:
    return Caller(world.kubeconfig(EDGE, "--as", name))


def message(document: dict[str, object], status: int, reason: str) -> str:
    """What a Status says, once it is the one that is expected."""
    assert (document["kind"], document["code"], document["reason"]) == ("Status", status, reason)
    return str(document["message"])


# ---- the three kinds -------------------------------------------------------------------------------------------------


@BOTH
def test_a_certificate_caller_is_impersonated_by_the_agents_own_credential(
    world: TowerWorld, member: BackendMember, caller_of: Callable[[str], Caller], cluster: str
) -> None:
    assert caller_of(cluster).ask(f"/by-certificate/{cluster}").status == 200
    (seen,) = member.seen(f"/by-certificate/{cluster}")
    assert seen.certificate == (AGENT if cluster == EDGE else None)
    assert seen.values("authorization") == ([] if cluster == EDGE else [f"Bearer {TOKEN}"])
    assert seen.values("impersonate-user") == [f"tower:{world.host}:admin"]


@BOTH
def test_a_bearer_token_passes_untouched_on_a_connection_without_a_certificate(
    member: BackendMember, caller_of: Callable[[str], Caller], cluster: str
) -> None:
    path = f"/by-bearer/{cluster}"
    answer = caller_of(cluster).ask(path, f"Authorization: Bearer {TOKEN}", "Impersonate-User: jane", anonymous=True)
    assert answer.status == 200
    (seen,) = member.seen(path)
    assert seen.certificate is None
    assert seen.values("authorization") == [f"Bearer {TOKEN}"]
    assert seen.values("impersonate-user") == ["jane"]


@BOTH
@pytest.mark.parametrize(
    "headers", [[], ["Authorization: Basic YWRtaW46YWRtaW4="], ["Authorization: Bearer "], [MASTERS]], ids=str
)
def test_who_shows_nothing_gets_401_from_the_agent(
    member: BackendMember, caller_of: Callable[[str], Caller], cluster: str, headers: list[str]
) -> None:
    path = f"/by-nobody/{cluster}/{len(headers)}"
    answer = caller_of(cluster).ask(path, *headers, anonymous=True)
    assert answer.status == 401
    assert "TWR401" in message(json.loads(answer.body), 401, "Unauthorized")
    assert member.seen(path) == []


@BOTH
def test_a_garbage_token_never_acts_as_the_agent(
    member: BackendMember, caller_of: Callable[[str], Caller], cluster: str
) -> None:
    path, caller = f"/garbage/{cluster}", caller_of(cluster)
    assert caller.ask(f"{path}/warm").status == 200  # a connection of the agent's own is kept now
    for _ in range(3):
        answer = caller.ask(path, GARBAGE, MASTERS, "Impersonate-User: root", anonymous=True)
        assert answer.status == 401
    warm = member.seen(f"{path}/warm")[0].connection
    seen = [each for each in member.seen(path) if "warm" not in each.first]
    assert len(seen) == 3
    for request in seen:
        assert (request.certificate, request.values("authorization")) == (None, [GARBAGE.partition(": ")[2]])
        assert request.connection != warm


def test_a_certificate_wins_over_a_bearer_token_which_is_gone(
    world: TowerWorld, member: BackendMember, admin: Caller
) -> None:
    assert admin.ask("/both-shown", f"Authorization: Bearer {TOKEN}").status == 200
    (seen,) = member.seen("/both-shown")
    assert (seen.certificate, seen.values("authorization")) == (AGENT, [])
    assert seen.values("impersonate-user") == [f"tower:{world.host}:admin"]


# ---- certificates that do not count ----------------------------------------------------------------------------------


def test_an_expired_certificate_gets_401_naming_when(
    world: TowerWorld, member: BackendMember, admin: Caller, tmp_path: Path
) -> None:
    user = f"tower:{world.host}:admin"
    papers = forgery.caller(tmp_path, forgery.authority_of(world), user, age=7200, ttl=3600)
    ended = x509.load_pem_x509_certificate(papers.chain.read_bytes()).not_valid_after_utc
    with logs(world.members[EDGE].agent.log, "request", "401", "TWR402"):
        status, document = get_as(admin, context_of(admin, papers.chain, papers.key), "/expired", GARBAGE)
    said = message(document, status, "Unauthorized")
    assert status == 401
    assert f"{ended:%Y-%m-%dT%H:%M}" in said
    assert user in said
    assert member.seen("/expired") == []


@pytest.mark.parametrize("kind", ["agents", "agent-serving"])
def test_a_certificate_of_another_issuer_of_this_tower_gets_401_saying_which(
    world: TowerWorld, member: BackendMember, admin: Caller, tmp_path: Path, kind: str
) -> None:
    held = forgery.identity_of(world, OTHER)
    chain, key = {
        "agents": (held.chain_pem, held.key_pem),
        "agent-serving": (held.serving_chain_pem, held.serving_key_pem),
    }[kind]
    papers = forgery.Papers.write(tmp_path, kind, chain, key)
    status, document = get_as(admin, context_of(admin, papers.chain, papers.key), "/other-issuer")
    said = message(document, 401, "Unauthorized")
    assert status == 401
    assert "TWR" in said
    assert member.seen("/other-issuer") == []


def test_a_certificate_of_an_unknown_authority_ends_in_a_tls_alert_that_is_counted(
    world: TowerWorld, member: BackendMember, admin: Caller, tmp_path: Path
) -> None:
    stranger = Authority.create(world.host, at=time.time())  # of the same name
    papers = forgery.caller(tmp_path, stranger, f"tower:{world.host}:admin")
    with (
        moves(world, "tower_agent_caller_tls_failures_total", cluster=EDGE),
        logs(world.members[EDGE].agent.log, "caller-tls-failed", "TWR413"),
        pytest.raises(ssl.SSLError, match=r"(?i)unknown.ca"),
    ):
        get_as(admin, context_of(admin, papers.chain, papers.key), "/unknown-authority")
    assert member.seen("/unknown-authority") == []


# ---- revocation ------------------------------------------------------------------------------------------------------


def test_a_revoked_caller_is_refused_at_once_and_its_watch_ends_within_a_second(world: TowerWorld) -> None:
    alice, bob = person(world, "alice"), person(world, "bob")
    with alice.connect() as watching, alice.connect() as asking, bob.connect() as other:
        watching.send(watching.request("GET", "/watch"))
        assert watching.line().startswith(b"HTTP/1.1 200")
        for connection in (asking, other):
            connection.send(connection.request("GET", "/before"))
            assert connection.answer().status == 200
        began = time.monotonic()
        assert world.call("POST", "/v1/callers/alice/revoke", {})[0] in (200, 201)
        assert ticks_until_end(watching) - began < 1.0
        asking.send(asking.request("GET", "/after"))
        answer = asking.answer()
        assert answer.status == 401
        assert "revoked" in message(json.loads(answer.body), 401, "Unauthorized")
        other.send(other.request("GET", "/after"))
        assert other.answer().status == 200
    assert alice.ask("/again").status == 401


def test_a_certificate_can_be_revoked_without_its_owner(world: TowerWorld) -> None:
    lost, kept = person(world, "carol"), Caller(world.kubeconfig(EDGE, "--as", "carol", "--ttl", "2h"))
    user = yaml.safe_load(lost.kubeconfig.read_text())["users"][0]["user"]
    pem = base64.b64decode(user["client-certificate-data"])
    world.towerctl("revoke", "certificate", f"{x509.load_pem_x509_certificate(pem).serial_number:x}")
    deadline = time.monotonic() + 1.0
    while (answer := lost.ask("/lost")).status != 401:
        assert time.monotonic() < deadline
    assert "revoked" in message(json.loads(answer.body), 401, "Unauthorized")
    assert kept.ask("/kept").status == 200


def test_a_name_that_the_owner_does_not_allow_gets_403_with_the_lines_to_add(
    world: TowerWorld, member: BackendMember
) -> None:
    answer = person(world, "mallory").ask("/not-allowed")
    said = message(json.loads(answer.body), 403, "Forbidden")
    assert answer.status == 403
    for text in ("TWR406", "mallory", "users", world.host):
        assert text in said
    assert member.seen("/not-allowed") == []
