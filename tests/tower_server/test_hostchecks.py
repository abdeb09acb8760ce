"""What `towerctl check` says of what a controller has found inside a member."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from daemon.checks import Graph, Item
from daemon.kube.errors import Forbidden, KubeError, NotFound
from tower_server.hostchecks import clock_check, host_checks

pytestmark = pytest.mark.asyncio
OWNED = (
    "TWR124: host 'elsewhere' has had this member since 2026-01-01 as its cluster 'berlin'; delete that cluster there; "
    "where that host is gone, in the member: kubectl -n kube-system delete configmap tower-host-elsewhere"
)


class Host:
    def __init__(self, found: dict[str, Any] | KubeError) -> None:
        self._found = found
        self.asked = 0

    async def get(self, _resource: object, _name: str) -> dict[str, Any]:
        self.asked += 1
        if isinstance(self._found, KubeError):
            raise self._found
        return self._found


def member(**conditions: tuple[str, str, str]) -> dict[str, Any]:
    listed = [{"type": k, "status": s, "reason": r, "message": m} for k, (s, r, m) in conditions.items()]
    return {"kind": "Member", "status": {"conditions": listed}}


async def check_all(found: dict[str, Any] | KubeError) -> list[Item]:
    host = Host(found)
    report = await Graph(list(host_checks(host, "edge", needs=()))).run()  # type: ignore[arg-type]
    assert host.asked == 1
    assert {item.subject for item in report.items} == {"edge"}
    return list(report.items)


@pytest.mark.parametrize(
    ("ahead", "status", "said"),
    [
        (-200.0, "ok", "the clock is the apiserver's"),
        (3700.0, "warning", "61m ahead of that of api:6443: where that one is right, certificates made here are not"),
        (-3700.0, "warning", "61m behind that of api:6443: where that one is right, certificates made elsewhere are"),
    ],
)
async def test_a_clock_that_is_not_the_apiservers_is_told(ahead: float, status: str, said: str) -> None:
    client = SimpleNamespace(ahead=ahead, address="api:6443")
    (item,) = (await Graph([clock_check(client, needs=())]).run()).items  # type: ignore[arg-type]
    assert (item.status, item.code) == (status, "" if status == "ok" else "TWR502")
    assert said in item.message


async def check(found: dict[str, Any] | KubeError) -> tuple[Item, Item]:
    objects, accepted, federation = await check_all(found)
    assert (objects.status, objects.message) == ("ok", "port and Service are there")
    return accepted, federation


@pytest.mark.parametrize("kind", ["PortReady", "Initialized", "ResourceWritable"])
async def test_what_keeps_callers_away_is_a_cause_of_its_own(kind: str) -> None:
    told = "TWR120: spec.connection.kubernetesAPIServerPort is 1, and the ports are 6000-7000; take it out of the spec"
    found = member(**{kind: ("False", "PortOutOfRange", told)}, Accepted=("Unknown", "NotLooked", "later"))
    objects, accepted, federation = await check_all(found)
    assert (objects.status, objects.code) == ("failed", "TWR120")
    assert objects.message.endswith("the ports are 6000-7000")
    assert objects.next == "take it out of the spec"
    assert (accepted.status, federation.status) == ("skipped", "skipped")


async def test_what_is_only_under_way_is_no_fault() -> None:
    await check(member(Initialized=("False", "NotInitialized", "its Service has no address yet")))


async def test_a_refusal_is_said_by_its_code_and_its_own_way_out() -> None:
    accepted, federation = await check(
        member(Accepted=("False", "OwnedByAnotherHost", OWNED), FederationReady=("False", "NotAccepted", "not yet"))
    )
    assert (accepted.status, accepted.code) == ("failed", "TWR124")
    assert accepted.message == "host 'elsewhere' has had this member since 2026-01-01 as its cluster 'berlin'"
    assert accepted.next.startswith("delete that cluster there; where that host is gone")
    assert federation.status == "skipped", "that is no second fault"


@pytest.mark.parametrize("told", ["somebody wrote this by hand", "TWR999: no such code; mend"])
async def test_a_message_of_another_form_is_shown_as_it_is(told: str) -> None:
    accepted, _ = await check(member(Accepted=("False", "X", told)))
    assert (accepted.status, accepted.code, accepted.message) == ("failed", "TWR124", told)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (member(Accepted=("True", "Accepted", "")), "its member is this cluster's"),
        (member(Accepted=("True", "Unmarked", "this host may not leave its mark")), "this host may not leave its mark"),
        (member(), "no Cluster resource asks for it"),
        (NotFound("TWR116", "gone"), "no Cluster resource asks for it"),
        ({"kind": "Member", "status": {"conditions": "edited by hand"}}, "no Cluster resource asks for it"),
    ],
)
async def test_what_is_fine_is_fine(found: dict[str, Any] | KubeError, says: str) -> None:
    accepted, federation = await check(found)
    assert (accepted.status, accepted.message) == ("ok", says)
    assert (federation.status, federation.message) == ("ok", "not asked for")


async def test_what_was_not_looked_at_is_a_warning_and_what_cannot_be_asked_is_unknown() -> None:
    accepted, _ = await check(member(Accepted=("Unknown", "NotLooked", "once a request gets through")))
    assert accepted.status == "warning"
    assert "once a request gets through" in accepted.message
    objects, accepted, _ = await check_all(Forbidden("TWR115", "403", mend="add a rule"))
    assert (objects.status, objects.code, objects.next) == ("unknown", "TWR115", "add a rule")
    assert accepted.status == "skipped"


@pytest.mark.parametrize(
    ("status", "reason", "told", "expected"),
    [
        ("True", "Joined", "as KubeFedCluster x/edge", ("ok", "as KubeFedCluster x/edge")),
        ("False", "Left", "nothing is left", ("ok", "not asked for")),
        ("False", "LeftBehind", "the account stays", ("warning", "the account stays")),
        (
            "False",
            "FederationFailed",
            "TWR127: kubefed is not installed; install it",
            ("failed", "kubefed is not installed"),
        ),
    ],
)
async def test_the_federation_has_a_line_of_its_own(
    status: str, reason: str, told: str, expected: tuple[str, str]
) -> None:
    _, federation = await check(member(Accepted=("True", "Accepted", ""), FederationReady=(status, reason, told)))
    assert (federation.status, federation.message) == expected
