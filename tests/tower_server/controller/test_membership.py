"""What is asked of the errands for a cluster, and what their news are made into."""

from __future__ import annotations

from dataclasses import replace

import pytest

from daemon.faults import TowerError
from tower_server.controller.conditions import Condition
from tower_server.controller.errands import Findings
from tower_server.controller.facts import Observed
from tower_server.controller.membership import Membership, withheld
from tower_server.controller.status import Outcome
from tower_server.controller.wanted import read_wanted
from tower_server.ports import PortRange
from tower_server.records import Cluster
from tower_server.state import Verdict

pytestmark = pytest.mark.asyncio
RECORD = Cluster(name="edge", uid="u", created=1.0, ports={"kubernetes": 6001}, resource="r")
OUTCOME = Outcome(ports={"kubernetes": 6001}, address="fd00::7")
RANGES = {"kubernetes": PortRange(6000, 6100), "kubesphere": PortRange(16000, 16100)}
UP = Observed(Verdict("Connected", "True"), 1, {"hosts": ["here", "elsewhere"]})
YES = Condition("Accepted", "True", "Accepted")


class Errands:
    """Takes what it is asked, answers what it is told to."""

    def __init__(self, *findings, left=""):
        self.asked, self.farewells, self._findings, self._left = [], [], list(findings), left

    def ask(self, errand):
        self.asked.append(errand)
        return self._findings.pop(0) if self._findings else None

    async def farewell(self, errand):
        self.farewells.append(errand)
        return self._left


class Registry:
    def __init__(self, *, broken=False):
        self.noted, self._broken = [], broken

    async def note_federated(self, record, federated):
        if self._broken:
            raise TowerError("TWR108", "the record keeps changing")
        self.noted.append(federated)
        return replace(record, federated=federated)


def resource(*conditions, federation=False, **meta):
    spec = {"connection": {"type": "proxy"}, "joinFederation": federation}
    return {
        "metadata": {"name": "edge", "uid": "r", "labels": {"region": "north"}, **meta},
        "spec": spec,
        "status": {"conditions": list(conditions)},
    }


async def look(errands, registry=None, *, held=None, record=RECORD, observed=UP, outcome=OUTCOME):
    held = held or resource()
    wanted = read_wanted(held, ranges=RANGES)
    membership = Membership(errands=errands, registry=registry or Registry())
    return await membership.look(
        outcome, record=record, wanted=wanted, resource=held, observed=observed, hosted_as="host"
    )


async def test_the_errand_says_what_is_wanted_and_by_which_way():
    errands = Errands()
    await look(errands, held=resource(federation=True))
    (errand,) = errands.asked
    assert (errand.cluster, errand.port, errand.server) == ("edge", 6001, "https://[fd00::7]:6443")
    assert errand.labels == {"region": "north"}
    assert errand.served_too == {"here", "elsewhere"}
    assert (errand.hosted_as, errand.healthy, errand.federate, errand.joined) == ("host", True, True, False)
    assert not errand.passthrough


@pytest.mark.parametrize(
    ("observed", "outcome"),
    [
        (None, OUTCOME),
        (replace(UP, tunnels=0), OUTCOME),
        (UP, replace(OUTCOME, ports={})),
        (UP, replace(OUTCOME, address="")),
    ],
)
async def test_a_member_that_cannot_be_reached_is_not_to_be_asked(observed, outcome):
    errands = Errands()
    await look(errands, observed=observed, outcome=outcome)
    assert not errands.asked[0].healthy


@pytest.mark.parametrize(
    "report", [{}, {"hosts": "x", "services": [], "kubesphere": 1}, {"services": {"kubernetes": 2}}]
)
async def test_whatever_a_member_says_of_itself_is_borne(report):
    errands = Errands()
    await look(errands, observed=replace(UP, report=report))
    assert errands.asked[0].served_too == frozenset()
    assert errands.asked[0].kubesphere == ""


async def test_a_member_that_says_that_it_differs_or_passes_through_is_asked_as_such():
    report = {"services": {"kubernetes": {"mode": "passthrough"}}, "kubesphere": {"trouble": "the secrets differ"}}
    errands = Errands()
    await look(errands, observed=replace(UP, report=report))
    assert errands.asked[0].passthrough
    assert errands.asked[0].kubesphere == "the secrets differ"


async def test_a_member_that_has_not_answered_about_its_kubesphere_yet_is_not_accepted_meanwhile():
    for pending in (True, False):
        errands = Errands()
        await look(errands, observed=replace(UP, report={"kubesphere": {"pending": pending, "trouble": ""}}))
        assert errands.asked[0].healthy is not pending


async def test_what_nobody_knows_yet_is_said_once_and_then_stays_as_it_was():
    assert [each.status for each in (await look(Errands())).inside] == ["Unknown"]
    held = resource({"type": "Accepted", "status": "False"})
    assert (await look(Errands(), held=held)).inside == ()


async def test_the_join_is_noted_before_anything_of_it_is_made():
    joining = Condition("FederationReady", "Unknown", "Joining")
    errands, registry = Errands(Findings(YES, joining)), Registry()
    outcome = await look(errands, registry, held=resource(federation=True))
    assert registry.noted == [True]
    assert [each.joined for each in errands.asked] == [False, True]
    assert outcome.inside == (YES, joining)
    errands = Errands(Findings(YES, joining))
    with pytest.raises(TowerError):
        await look(errands, Registry(broken=True), held=resource(federation=True))
    assert not [each for each in errands.asked if each.joined]


async def test_the_note_goes_when_nothing_is_left_on_either_side():
    left = Condition("FederationReady", "False", "Left")
    registry, record = Registry(), replace(RECORD, federated=True)
    await look(Errands(Findings(YES, left)), registry, record=record)
    assert registry.noted == []
    await look(Errands(Findings(YES, left, left=True)), registry, record=record)
    assert registry.noted == [False]


async def test_a_cluster_that_is_being_deleted_leaves_the_federation_first():
    errands = Errands()
    await look(errands, held=resource(federation=True, deletionTimestamp="2026-01-01T00:00:00Z"))
    assert not errands.asked[0].federate


@pytest.mark.parametrize(("observed", "tried"), [(UP, True), (None, True), (replace(UP, tunnels=0), False)])
async def test_a_farewell_is_tried_unless_it_is_known_to_be_in_vain(observed, tried):
    errands = Errands(left="configmap tower-host-here")
    membership = Membership(errands=errands, registry=Registry())
    said = await membership.farewell(RECORD, observed, hosted_as="", marked=True)
    assert [each.healthy for each in errands.farewells] == [tried]
    assert said == "configmap tower-host-here"
    assert await membership.farewell(RECORD, observed, hosted_as="", marked=False) == "", "nothing was made in it"


async def test_a_first_kubeconfig_waits_for_the_acceptance_and_only_for_that():
    assert withheld(Outcome(), []) == "", "members are not looked into here"
    assert "Accepted" in withheld(Outcome(inside=(Condition("Accepted", "False", "X"),)), [])
    assert withheld(Outcome(inside=(YES,)), []) == ""
    assert withheld(Outcome(), [{"type": "Accepted", "status": "True"}]) == ""
    assert withheld(Outcome(), [{"type": "Accepted", "status": "Unknown"}]) != ""
