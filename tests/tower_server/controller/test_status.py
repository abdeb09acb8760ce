"""What is said of a cluster: complete, caused, and still while nothing changes."""

from __future__ import annotations

from dataclasses import replace

from tests.tower_server.controller.kit import DOWN, UP, said
from tower_server.controller.conditions import Condition
from tower_server.controller.status import Mirror, Outcome, conditions, endpoint, member_status, mirrored
from tower_server.controller.wanted import Problem

DONE = Outcome(ports={"kubernetes": 6012}, address="10.96.0.9")


def body(**connection):
    return {"metadata": {"name": "edge-1"}, "spec": {"provider": "x", "connection": {"type": "proxy", **connection}}}


def mirror(outcome=DONE, observed=UP, kubeconfig=None):
    return Mirror(outcome, conditions(outcome, observed, held=None), "ours/finalizer", kubeconfig)


def test_endpoints_bracket_ipv6_and_are_empty_without_an_address():
    assert endpoint("https", "fd00::1", 6443) == "https://[fd00::1]:6443"
    assert endpoint("https", "", 6443) == ""


def test_every_condition_is_there_from_the_beginning_on():
    status = member_status({}, Outcome(), None, now="t1", generation=1)
    types = {each["type"]: each["status"] for each in status["conditions"]}
    assert types["AgentAvailable"] == types["MemberReady"] == types["PortReady"] == "Unknown"
    assert status["observedGeneration"] == 1


def test_a_status_that_says_the_same_is_the_same():
    first = member_status({}, DONE, UP, now="t1", generation=1)
    assert member_status(first, DONE, UP, now="t2", generation=1) == first
    assert (first["uid"], first["version"], first["nodes"]) == ("kube-system-1", "v1.35.4", 3)


def test_a_lost_tunnel_is_told_with_code_cause_and_mend_and_the_member_is_unknown_then():
    status = member_status({}, DONE, DOWN, now="t1", generation=1)
    holder = {"status": status}
    assert said(holder, "AgentAvailable") == "False"
    message = said(holder, "AgentAvailable", "message")
    assert "TWR201" in message
    assert "no tunnel since" in message
    assert said(holder, "MemberReady") == "Unknown"


def test_what_nobody_has_seen_since_a_restart_stays_as_it_was():
    before = member_status({}, DONE, UP, now="t1", generation=1)
    assert member_status(before, DONE, None, now="t2", generation=1) == before


def test_while_it_comes_and_goes_nothing_that_is_said_changes():
    told = "it was lost 3 times within 10 min"
    up, down = (replace(observed, flapping=told, tunnel_flaps=True, cluster="edge-1") for observed in (UP, DOWN))
    first = member_status({}, DONE, down, now="t1", generation=1)
    assert said({"status": first}, "AgentAvailable") == said({"status": first}, "MemberReady") == "False"
    assert said({"status": first}, "AgentAvailable", "reason") == "Flapping"
    message = said({"status": first}, "MemberReady", "message")
    assert message.startswith(f"TWR229: {told}; ")
    assert "`towerctl describe cluster edge-1`" in message
    settled = member_status(first, DONE, up, now="t2", generation=1)
    assert settled["conditions"] == first["conditions"]
    assert member_status(settled, DONE, down, now="t3", generation=1) == settled
    behind = replace(up, tunnel_flaps=False)
    assert said({"status": member_status({}, DONE, behind, now="t1", generation=1)}, "AgentAvailable") == "True"


def test_a_problem_takes_its_condition():
    outcome = DONE.with_problem(Problem("PortReady", "PortTaken", "TWR121", "port 1 belongs to b", "take it away"))
    (found,) = [each for each in conditions(outcome, UP, held=None) if each.type == "PortReady"]
    assert found == Condition("PortReady", "False", "PortTaken", "TWR121: port 1 belongs to b; take it away")


def test_the_resource_gets_our_fields_and_keeps_all_others():
    before = body(token="legacy")
    after = mirrored(before, mirror(), now="t1")
    assert after["spec"]["provider"] == "x"
    assert after["spec"]["connection"]["token"] == "legacy"
    assert after["spec"]["connection"]["kubernetesAPIEndpoint"] == "https://10.96.0.9:6443"
    assert after["metadata"]["finalizers"] == ["ours/finalizer"]
    assert before == body(token="legacy"), "what the watches hold is not changed in place"
    assert mirrored(after, mirror(), now="t2") is None


def test_ready_of_kubesphere_is_not_ours_to_write():
    after = mirrored(body(), mirror(), now="t1")
    assert said(after, "Ready") is None
    assert said(after, "ResourceWritable") is None
    assert said(after, "MemberReady") == "True"


def test_a_deleted_resource_gets_no_finalizer():
    leaving = body()
    leaving["metadata"]["deletionTimestamp"] = "t0"
    assert not mirrored(leaving, mirror(), now="t1")["metadata"]["finalizers"]
