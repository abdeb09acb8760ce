"""What a server may not do on its host is named before it is missed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon.checks import Result
from daemon.kube.errors import KubeError, Unreachable
from tower_server import hostrights
from tower_server.hostrights import NEEDED, check_rights

RBAC = Path(__file__).parents[2] / "deploy" / "base" / "rbac.yaml"


class Host:
    """Denies what `lacks` says, or answers nothing."""

    address = "127.0.0.1:6443"

    def __init__(self, *lacks: tuple[str, str], broken: KubeError | None = None, seconds: float = 0.0) -> None:
        self._lacks, self._broken, self._seconds = lacks, broken, seconds
        self.asked: list[dict[str, str]] = []

    async def create(self, _resource: object, body: dict[str, Any]) -> dict[str, Any]:
        if self._broken is not None:
            raise self._broken
        await asyncio.sleep(self._seconds)
        asked = body["spec"]["resourceAttributes"]
        self.asked.append(asked)
        return {"status": {"allowed": (asked["verb"], asked["resource"]) not in self._lacks}}


async def check(host: Host) -> Result:
    return await check_rights(host, "tower-system")  # type: ignore[arg-type]


def test_what_is_asked_for_is_what_the_manifests_give() -> None:
    given, asked = set(), set()
    for document in yaml.safe_load_all(RBAC.read_text()):
        for rule in document.get("rules", ()):
            for resource in rule["resources"]:
                key = (document["kind"] == "Role", rule["apiGroups"][0], resource, *rule.get("resourceNames", [""]))
                given |= {(*key, verb) for verb in rule["verbs"]}
    for needed in NEEDED:
        key = (needed.own, needed.resource.group, needed.named, needed.name)
        asked |= {(*key, verb) for verb in needed.verbs}
    assert asked == given


@pytest.mark.asyncio
async def test_every_right_is_asked_for_where_it_is_needed() -> None:
    host = Host()
    assert (await check(host)).status == "ok"
    assert {"group": "", "resource": "secrets", "verb": "patch", "namespace": "tower-system"} in host.asked
    assert {"group": "", "resource": "events", "verb": "create", "namespace": "default"} in host.asked
    status = {"group": "tower.kubesphere.io", "resource": "members", "verb": "update", "subresource": "status"}
    assert status in host.asked
    assert {"group": "", "resource": "namespaces", "verb": "get", "name": "kube-system"} in host.asked


@pytest.mark.asyncio
async def test_what_is_missing_is_named_with_the_rule_and_the_role_that_lacks_it() -> None:
    result = await check(Host(("create", "leases"), ("update", "leases"), ("patch", "members")))
    assert (result.status, result.code) == ("failed", "TWR115")
    assert result.message.endswith("does not let this server patch members; create, update leases")
    members, leases = result.evidence
    assert members == (
        'the ClusterRole lacks {apiGroups: ["tower.kubesphere.io"], resources: ["members"], verbs: [patch]}'
    )
    assert leases.startswith("the Role in namespace tower-system lacks")
    assert leases.endswith('resources: ["leases"], verbs: [create, update]}')
    assert "`kubectl apply -k deploy/overlays/public`" in result.next  # a file of the base alone has no namespace


@pytest.mark.asyncio
async def test_an_apiserver_that_says_nothing_leaves_it_unknown() -> None:
    result = await check(Host(broken=Unreachable("TWR114", "no answer within 10 s")))
    assert (result.status, result.code) == ("unknown", "TWR114")
    assert "no answer within 10 s" in result.message


@pytest.mark.asyncio
async def test_an_apiserver_that_is_slow_lacks_no_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostrights, "PATIENCE", 0.05)
    result = await check(Host(seconds=60.0))
    assert (result.status, result.code) == ("unknown", "TWR114")
    assert result.message.startswith("rights could not be asked for: 127.0.0.1:6443 took more than 0.05 s for ")
