from __future__ import annotations

import pytest

from daemon.faults import TowerError
from tests.tower_server.admin.standin import NAMESPACE, Apiserver
from tower_server.admin.app import CALLS, pattern_of
from tower_server.admin.rights import LISTS, Person, Right, permit, right_of

ALICE = Person("alice", "u-1", ("ops",), {"k": ("v",)})


def right(method: str, path: str, **more: bool) -> str:
    parts = path.split("/")
    websocket = more.pop("websocket", False)
    return str(right_of(method, pattern_of(parts, websocket=websocket), parts, **more))


@pytest.mark.parametrize(
    ("method", "path", "more", "expected"),
    [
        ("GET", "clusters", {}, "list clusters"),
        ("GET", "clusters", {"watch": True}, "watch clusters"),
        ("GET", "clusters/edge", {}, "get clusters named edge"),
        ("POST", "clusters", {}, "create clusters"),
        ("DELETE", "clusters/edge", {}, "delete clusters named edge"),
        ("POST", "clusters/edge/tokens", {}, "create clusters/tokens named edge"),
        ("GET", "clusters/edge/connection", {}, "get clusters/connection named edge"),
        ("POST", "clusters/edge/forward/grafana", {"websocket": True}, "create clusters/forward named edge"),
        ("POST", "agents/edge/one/revoke", {}, "create agents/revoke named edge"),
        ("DELETE", "tokens/abc", {}, "delete tokens named abc"),
        ("GET", "tunnels", {}, "list tunnels"),
        ("GET", "info", {}, "get info"),
        ("GET", "authority", {}, "get authority"),
        ("POST", "authority/rotate", {}, "create authority/rotate"),
    ],
)
def test_a_call_has_the_name_that_rbac_knows(method: str, path: str, more: dict, expected: str) -> None:
    verb, _, rest = expected.partition(" ")
    resource, _, named = rest.partition(" named ")
    wanted = f"{verb} {resource}.admin.tower.kubesphere.io" + (f" named {named}" if named else "")
    assert right(method, path, **more) == wanted


def test_a_right_that_is_bound_to_one_cluster_makes_no_certificate_that_is_good_for_all() -> None:
    parts = ["clusters", "edge", "credentials"]
    asked = right_of("POST", pattern_of(parts), parts)
    assert (asked.verb, asked.resource, asked.subresource, asked.name) == ("create", "clusters", "credentials", "")
    assert "of all clusters, each of which a caller's certificate is good for" in str(asked)


def test_who_may_only_read_changes_nothing_by_any_call() -> None:
    for pattern, methods in CALLS.items():
        parts = ["x" if part.isupper() else part for part in pattern]
        for method in methods:
            verb = right_of(method, pattern, parts).verb
            assert (verb in ("get", "list", "watch")) == (method == "GET"), (method, pattern)


def test_every_list_is_a_call() -> None:
    assert {(name,) for name in LISTS} <= CALLS.keys()


def test_an_unknown_path_has_no_right() -> None:
    with pytest.raises(TowerError) as caught:
        pattern_of(["nothing"])
    assert caught.value.code == "TWR612"


@pytest.mark.asyncio
async def test_the_apiserver_is_asked_about_that_person_and_its_no_says_what_is_missing() -> None:
    host = Apiserver()
    host.allowed.add(("alice", "get", "clusters"))
    await permit(host, ALICE, Right("get", "clusters", "", "edge"), namespace=NAMESPACE)  # type: ignore[arg-type]
    (asked,) = host.asked
    assert (asked["user"], asked["uid"], asked["groups"], asked["extra"]) == ("alice", "u-1", ["ops"], {"k": ["v"]})
    assert asked["resourceAttributes"] == {
        "namespace": NAMESPACE,
        "verb": "get",
        "group": "admin.tower.kubesphere.io",
        "resource": "clusters",
        "name": "edge",
    }
    with pytest.raises(TowerError) as caught:
        await permit(host, ALICE, Right("delete", "clusters", "", "edge"), namespace=NAMESPACE)  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.http_status) == ("TWR614", 403)
    assert "alice may not delete clusters.admin.tower.kubesphere.io named edge" in caught.value.message
    assert "Role tower-operator" in (caught.value.mend or "")
