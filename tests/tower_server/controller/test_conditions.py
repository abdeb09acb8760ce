"""Conditions: one writer a type, a time that moves on transitions only, others' entries left alone."""

from tower_server.controller.conditions import MAX_MESSAGE, Condition, find, merged

READY = Condition("AgentAvailable", "True", "Connected", "an agent is there")
DOWN = Condition("AgentAvailable", "False", "TunnelDown", "no tunnel")
FOREIGN = {"type": "Ready", "status": "True", "lastTransitionTime": "long ago", "odd": 1}


def test_a_condition_of_others_stays_as_it_is_and_where_it_is():
    result = merged([FOREIGN], [READY], now="t1")
    assert result[0] == FOREIGN
    assert result[1]["type"] == "AgentAvailable"


def test_nothing_changes_when_nothing_has_changed():
    first = merged([], [READY], now="t1", generation=3)
    assert merged(first, [READY], now="t2", generation=3) == first


def test_the_transition_time_moves_with_the_status_and_not_with_the_message():
    first = merged([], [READY], now="t1")
    reworded = merged(first, [Condition("AgentAvailable", "True", "Connected", "two agents are there")], now="t2")
    assert reworded[0]["lastTransitionTime"] == "t1"
    assert reworded[0]["lastUpdateTime"] == "t2"
    assert merged(reworded, [DOWN], now="t3")[0]["lastTransitionTime"] == "t3"


def test_the_generation_is_noted_on_ours_and_not_on_kubespheres_form():
    ours = merged([], [READY], now="t1", generation=3)[0]
    assert ours["observedGeneration"] == 3
    assert "lastUpdateTime" not in ours
    assert "observedGeneration" not in merged([], [READY], now="t1")[0]


def test_what_somebody_broke_by_hand_is_put_right():
    for broken in (None, "text", 5, {}, ["text", None, {}], [{"status": "True"}]):
        assert [each["type"] for each in merged(broken, [READY], now="t1")] == ["AgentAvailable"]
    doubled = merged([], [READY], now="t1") * 2
    assert len(merged(doubled, [READY], now="t2")) == 1
    edited = [{**merged([], [READY], now="t1")[0], "status": "False"}]
    assert merged(edited, [READY], now="t2")[0]["status"] == "True"


def test_a_message_is_bounded():
    assert len(merged([], [Condition("A", "True", "B", "x" * 5000)], now="t")[0]["message"]) == MAX_MESSAGE


def test_a_condition_is_found_by_its_type():
    assert find([FOREIGN], "Ready") == FOREIGN
    assert find([FOREIGN], "Other") is None
    assert find("text", "Ready") is None
