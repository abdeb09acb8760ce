"""The kubeconfig in a Cluster: written only over a healthy way, and only when the one that stands there is no good."""

from __future__ import annotations

import base64
import time

import pytest
import yaml

from certs.ca import Authority
from certs.kubeconfig import Connection
from certs.revocation import RevocationList
from tower_server.controller.kubeconfig import LIFETIME, decide, issue

NOW = 1_800_000_000.0
DAY = 86400.0


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("lab", at=NOW - DAY)


@pytest.fixture
def connection(authority) -> Connection:
    return Connection("https://10.96.0.9:6443", "edge-1.members.tower", authority.bundle.root_pem)


def ask(authority, connection, held, *, now=NOW, healthy=True, revocations=None):
    return decide(held, connection, bundle=authority.bundle, revocations=revocations, now=now, healthy=healthy)


def test_a_fresh_one_is_kept_until_two_thirds_of_its_thirty_days(authority, connection):
    held = issue(authority, connection, cluster="edge-1", now=NOW)
    decision = ask(authority, connection, held)
    assert decision.action == "keep"
    assert decision.renew_at == pytest.approx(NOW + LIFETIME * 2 / 3, abs=60)
    assert LIFETIME == 30 * DAY
    assert ask(authority, connection, held, now=NOW + 19.9 * DAY).action == "keep"
    due = ask(authority, connection, held, now=NOW + 20.1 * DAY)
    assert due.action == "write"
    assert "two thirds" in due.why


def test_it_shows_the_hosts_admin_and_leads_to_the_cluster(authority, connection):
    config = yaml.safe_load(base64.b64decode(issue(authority, connection, cluster="edge-1", now=NOW)))
    cluster = config["clusters"][0]["cluster"]
    assert cluster["server"] == "https://10.96.0.9:6443"
    assert cluster["tls-server-name"] == "edge-1.members.tower"
    chain = base64.b64decode(config["users"][0]["user"]["client-certificate-data"])
    from certs.verify import load_chain

    who = authority.bundle.verify_client(load_chain(chain), NOW)
    assert (who.user, who.groups) == ("tower:lab:admin", ("tower:lab:cluster-admins",))


def test_without_a_healthy_way_nothing_is_written_and_the_reason_is_told(authority, connection):
    decision = ask(authority, connection, None, healthy=False)
    assert (decision.action, decision.why) == ("wait", "there is none yet")


@pytest.mark.parametrize("held", ["!!", "AAAA", 5, "x" * 200_000, base64.b64encode(b"clusters: []").decode()])
def test_what_cannot_be_read_is_written_anew(authority, connection, held):
    assert ask(authority, connection, held).action == "write"


def test_another_address_another_root_and_another_tower_make_a_new_one(authority, connection):
    held = issue(authority, connection, cluster="edge-1", now=NOW)
    moved = Connection("https://10.96.0.10:6443", connection.tls_server_name, connection.ca_pem)
    assert "10.96.0.9" in ask(authority, moved, held).why
    other = Authority.create("lab", at=NOW - DAY)
    theirs = Connection(connection.server, connection.tls_server_name, other.bundle.root_pem)
    assert "another root" in ask(other, theirs, held).why
    forged = issue(other, connection, cluster="edge-1", now=NOW)
    assert "of no use" in ask(authority, connection, forged).why


def test_a_revoked_one_is_replaced(authority, connection):
    held = issue(authority, connection, cluster="edge-1", now=NOW)
    revoked = RevocationList(number=1, host="lab", issued_at=NOW + 1, users={"tower:lab:admin": NOW + 1})
    assert ask(authority, connection, held, now=NOW + 2, revocations=revoked).action == "write"


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 {k: v}\n" + "\n".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 8)}]}}" for n in range(1, 20)),
        "[" * 40_000,
        "- x\n" * 12_000,
        f"[{'a,' * 23_000}]",
        "- " * 20_000,
        "? " * 20_000,
        "a: " * 15_000,
    ],
    ids=["merges", "depth", "lines", "commas", "items", "keys", "values"],
)
def test_who_may_write_the_resource_does_not_keep_the_server_busy_by_what_stands_there(authority, connection, text):
    began = time.process_time()
    decision = ask(authority, connection, base64.b64encode(text.encode()).decode())
    assert time.process_time() - began < 1
    assert decision.action == "write"
