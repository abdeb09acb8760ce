"""Who a caller is in the member, what happens to one who is nobody, and how a host's power is taken away."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.conftest import MEMBER, view, with_token
from tests.kubernetes.rawhttp import Answer, Connection
from tests.kubernetes.views import Pair, View
from tests.lab.controlplane import ControlPlane
from tests.lab.processes import wait_until
from tests.lab.world import TowerWorld

pytestmark = pytest.mark.cluster
HOST = "second"
PEOPLE = ("alice", "bob", "carol")


@pytest.fixture(scope="module")
def second(member: ControlPlane) -> Iterator[TowerWorld]:
    """Another host of the same member, whose agent works as the member's administrator by a client certificate.

    The owner lets its people in, as readers of configmaps; tests here revoke and unbind at will.
    """
    rules = {
        "users": [f"tower:{HOST}:admin", f"tower:{HOST}:probe", *PEOPLE],
        "groups": [f"tower:{HOST}:cluster-admins"],
    }
    member.kubectl("create", "clusterrole", "people", "--verb=get,list,watch", "--resource=configmaps")
    member.kubectl(
        "create", "clusterrolebinding", "people", "--clusterrole=people", *(f"--user={one}" for one in PEOPLE)
    )
    with tempfile.TemporaryDirectory(prefix="tower-") as folder, TowerWorld(Path(folder), host=HOST) as tower:
        tower.join(MEMBER, member, credential=member.admin_kubeconfig, policy=rules)
        yield tower


def whoami(caller: View) -> dict[str, object]:
    done = caller.kubectl("auth", "whoami", "-o", "json")
    assert done.code == 0, done
    found: dict[str, object] = json.loads(done.stdout)["status"]["userInfo"]
    return found


def test_whoami_is_the_same_both_ways(pair: Pair) -> None:
    direct, tunnel = (whoami(caller) for caller in pair.both())
    direct.pop("extra", None)  # a client certificate's own fingerprint: the agent shows another credential
    assert pair.caller == "certificate" or "extra" in tunnel
    tunnel.pop("extra", None)
    assert tunnel == direct


def test_a_certificate_caller_appears_under_its_own_name_and_groups(member: ControlPlane, world: TowerWorld) -> None:
    expected = {
        "username": f"tower:{world.host}:admin",
        "groups": [f"tower:{world.host}:cluster-admins", "system:authenticated"],
    }
    for flags in (["--embed"], []):  # a certificate in the file, and one from the credential plugin
        path = world.folder / f"whoami{len(flags)}.kubeconfig"
        world.towerctl("kubeconfig", MEMBER, *flags, "-f", str(path))
        found = whoami(view(member, "tunnel", path))
        assert {key: found[key] for key in expected} == expected


def test_a_service_account_of_the_member_works_untouched(member: ControlPlane, world: TowerWorld, token: str) -> None:
    path = with_token(world.kubeconfig(MEMBER), token)
    assert whoami(view(member, "tunnel", path))["username"] == "system:serviceaccount:shared:caller"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Authorization: Basic YWRtaW46YWRtaW4="],
        ["Authorization: Bearer garbage"],
        ["Authorization: Bearer garbage", "Impersonate-User: admin", "Impersonate-Group: system:masters"],
        ["Authorization: Bearer garbage", "Impersonate-Group: system:masters"],
        ["Authorization: Bearer ", "Impersonate-User: admin", "Impersonate-Group: system:masters"],
        ["X-Remote-User: admin", "X-Remote-Group: system:masters"],
        ["Impersonate-User: admin", "Impersonate-Group: system:masters"],
    ],
    ids=lambda headers: " + ".join(headers) or "nothing",
)
@pytest.mark.parametrize("agent", ["token", "certificate"])
def test_who_proves_nothing_gets_401_whatever_the_agent_works_as(
    member: ControlPlane, world: TowerWorld, second: TowerWorld, agent: str, headers: list[str]
) -> None:
    tower = world if agent == "token" else second
    caller = view(member, "tunnel", tower.kubeconfig(MEMBER))
    with Connection(caller, anonymous=True) as connection:
        connection.send(connection.request("GET", "/api/v1/secrets", *headers))
        answer = connection.answer()
    assert answer.status == 401
    status = json.loads(answer.body)
    assert (status["kind"], status["status"], status["reason"]) == ("Status", "Failure", "Unauthorized")


def test_a_name_works_once_the_owner_allows_it_and_until_then_the_403_says_how(
    member: ControlPlane, world: TowerWorld, second: TowerWorld
) -> None:
    refused = view(member, "tunnel", world.kubeconfig(MEMBER, "--as", "alice")).kubectl(
        "get", "configmaps", "-n", "shared"
    )
    assert refused.code == 1
    for text in (b"Forbidden", b"users:", b"alice", world.host.encode()):
        assert text in refused.stderr
    allowed = view(member, "tunnel", second.kubeconfig(MEMBER, "--as", "alice"))
    assert whoami(allowed)["username"] == "alice"
    assert allowed.kubectl("get", "configmaps", "-n", "shared", "-o", "name").code == 0
    assert b"cannot list resource" in allowed.kubectl("get", "secrets", "-n", "shared").stderr


def test_a_revoked_caller_is_refused_and_its_watch_ends_within_a_second(
    member: ControlPlane, second: TowerWorld
) -> None:
    bob = view(member, "tunnel", second.kubeconfig(MEMBER, "--as", "bob"))
    carol = view(member, "tunnel", second.kubeconfig(MEMBER, "--as", "carol"))
    watch = "/api/v1/namespaces/shared/configmaps?watch=1&resourceVersion=0"
    with Connection(bob) as watching, Connection(bob) as asking, Connection(carol) as other:
        for connection in (watching, other):
            connection.send(connection.request("GET", watch))
            assert connection.interim().startswith(b"HTTP/1.1 200")
        assert ask(asking).status == 200
        second.towerctl("revoke", "caller", "bob")
        revoked = time.monotonic()
        while not watching.at_end():
            assert time.monotonic() - revoked < 1.0
        assert time.monotonic() - revoked < 1.0
        answer = ask(asking)
        assert answer.status == 401
        assert "revoked" in json.loads(answer.body)["message"]
        member.kubectl("annotate", "configmap", "one", "-n", "shared", f"touched={revoked}", "--overwrite")
        while f"{revoked}".encode() not in (line := other.line()):  # the others' streams go on
            assert line
    assert bob.kubectl("get", "configmaps", "-n", "shared").code == 1
    again = view(member, "tunnel", second.kubeconfig(MEMBER, "--as", "carol"))
    assert again.kubectl("get", "configmaps", "-n", "shared").code == 0


def ask(connection: Connection) -> Answer:
    connection.send(connection.request("GET", "/api/v1/namespaces/shared/configmaps"))
    return connection.answer()


def test_taking_the_binding_away_takes_the_hosts_power_away_at_once(member: ControlPlane, second: TowerWorld) -> None:
    admin = view(member, "tunnel", second.kubeconfig(MEMBER))
    assert admin.kubectl("get", "secrets", "-A").code == 0
    binding = f"tower:{HOST}:cluster-admins"
    kept = member.kubectl("get", "clusterrolebinding", binding, "-o", "json").stdout
    member.kubectl("delete", "clusterrolebinding", binding)
    try:
        # the apiserver's own authorizer follows its watch cache: what is waited for is its answer when asked directly
        straight = view(member, "direct", member.kubeconfig(f"tower:{HOST}:admin", groups=[binding]))
        wait_until(lambda: straight.kubectl("get", "secrets", "-A").code == 1, "the member's refusal", 30)
        refused = admin.kubectl("get", "secrets", "-A")
        assert refused.code == 1
        assert f'User "tower:{HOST}:admin" cannot list resource "secrets"'.encode() in refused.stderr
    finally:
        restored = {key: value for key, value in json.loads(kept).items() if key != "metadata"}
        restored["metadata"] = {"name": binding}
        member.kubectl("create", "-f", "-", stdin=json.dumps(restored).encode())
