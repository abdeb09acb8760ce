from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs import names
from certs.errors import IssueRefused
from certs.names import AgentRole, ClientRole, IssuerRole, ReplicaRole, RootRole, ServerRole, ServingRole, parse_role

LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
USERS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=64)


@pytest.mark.parametrize(
    ("uri", "role"),
    [
        ("tower://hq", RootRole("hq")),
        ("tower://hq/issuers/agents", IssuerRole("hq", "agents")),
        ("tower://hq/servers/s1", ServerRole("hq", "s1")),
        ("tower://hq/replicas/tower-0", ReplicaRole("hq", "tower-0")),
        ("tower://hq/clusters/edge-1/agents/a1", AgentRole("hq", "edge-1", "a1")),
        ("tower://hq/clusters/edge-1/serving", ServingRole("hq", "edge-1")),
        ("tower://hq/clients/tower%3Ahq%3Aadmin", ClientRole("hq", "tower:hq:admin")),
    ],
)
def test_roles_have_one_spelling(uri: str, role: names.Role) -> None:
    assert parse_role(uri) == role
    assert str(role) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "tower://",
        "https://hq",
        "tower://HQ",
        "tower://hq/",
        "tower://hq/servers/",
        "tower://hq/servers/s1/",
        "tower://hq/clusters/a/agents/b/c",
        "tower://hq/clusters//agents/b",
        "tower://hq/clusters/a_b/serving",
        "tower://hq/clients/tower:hq:admin",  # unescaped: a second spelling of the same user
        "tower://hq/clients/%61",
        "tower://hq/clients/a%0Ab",
        "tower://hq/clients/",
        "tower://hq@evil/servers/s1",
        "tower://hq/clients/" + "a" * 600,
    ],
)
def test_what_no_role_would_write_is_no_role(uri: str) -> None:
    assert parse_role(uri) is None


@given(LABELS, LABELS, LABELS, USERS)
def test_every_role_comes_back(host: str, cluster: str, agent: str, user: str) -> None:
    for role in (AgentRole(host, cluster, agent), ServingRole(host, cluster), ClientRole(host, user)):
        assert parse_role(str(role)) == role


@given(st.text(max_size=80))
def test_any_text_is_a_canonical_role_or_none(text: str) -> None:
    role = parse_role("tower://" + text)
    assert role is None or str(role) == "tower://" + text


@pytest.mark.parametrize("bad", ["", "-a", "a-", "A", "a.b", "a/b", "a" * 64, "é", "a\n"])
def test_cluster_names_are_dns_labels(bad: str) -> None:
    with pytest.raises(IssueRefused, match=r"cluster name.*DNS label.*1 to 63"):
        names.check_label(bad, what="cluster")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("", "printable"),
        ("a\r\nImpersonate-User: b", "printable"),
        ("a\x00b", "printable"),
        (" a", "no space at either end"),
        ("é", "ASCII"),
        ("a" * 65, "64"),
        ("system:masters", "never issues system:"),
        ("System:Masters", "never issues system:"),
        ("tower:other:admin", "name space of another host"),
        ("Tower:hq:admin", "name space of another host"),
    ],
)
def test_callers_names_that_a_host_may_not_issue(bad: str, says: str) -> None:
    with pytest.raises(IssueRefused, match=says):
        names.check_caller_name(bad, host="hq", what="user")


def test_groups_are_bounded_and_named_once() -> None:
    assert names.check_groups(("a", "Domain Users", "a"), host="hq") == ("a", "Domain Users")
    with pytest.raises(IssueRefused, match=r"33 groups.*at most 32"):
        names.check_groups(tuple(f"g{i}" for i in range(33)), host="hq")


@pytest.mark.parametrize(
    "shared",
    [
        "*.example.com",
        "localhost",
        "a.localhost",
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "169.254.169.254",
        "edge-2.members.tower",
    ],
)
def test_a_serving_certificate_carries_nothing_that_two_clusters_share(shared: str) -> None:
    with pytest.raises(IssueRefused, match=r"not that cluster's alone.*edge-1\.members\.tower"):
        names.check_serving_name(shared, cluster="edge-1")


def test_names_for_certificates_are_dns_names_or_addresses() -> None:
    assert names.parse_host("Tower.Example") == "tower.example"
    assert names.parse_host("10.0.0.7") == ipaddress.ip_address("10.0.0.7")
    for bad in ("https://tower", "tower:8443", "a b", "", "a..b", "x" * 254, "a.*.b"):
        with pytest.raises(IssueRefused, match=r"neither a DNS name nor an IP address"):
            names.parse_host(bad)
