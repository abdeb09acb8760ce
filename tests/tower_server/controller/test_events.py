"""Which changes are worth an Event."""

from tower_server.controller.conditions import Condition, merged
from tower_server.controller.events import transitions

UP = Condition("AgentAvailable", "True", "Connected")
DOWN = Condition("AgentAvailable", "False", "TunnelDown")


def held(condition):
    return merged([], [condition], now="t")


def test_a_turn_and_another_cause_are_worth_one():
    assert transitions(held(UP), [DOWN]) == [DOWN]
    assert transitions(held(DOWN), [UP]) == [UP]
    worse = Condition("AgentAvailable", "False", "AuthFailed")
    assert transitions(held(DOWN), [worse]) == [worse]


def test_silence_a_first_good_word_and_what_is_merely_not_known_yet_are_worth_none():
    assert transitions(held(UP), [UP]) == []
    assert transitions(None, [UP]) == []
    assert transitions(None, [Condition("AgentAvailable", "Unknown", "NotSeen")]) == []
    assert transitions(None, [DOWN]) == [DOWN]


def test_how_every_cluster_begins_is_worth_none_and_its_return_is():
    never = Condition("AgentAvailable", "False", "NeverConnected")
    waiting = Condition("KubeconfigReady", "False", "Waiting")
    assert transitions(None, [never, waiting]) == []
    assert transitions(held(UP), [never]) == [never]
