"""Two names of one member hear of each other, and of the other's leaving."""

from tower_server.controller.twins import Twins


def test_the_other_is_named_and_poked_on_arrival_and_leave():
    poked: list[str] = []
    twins = Twins(poked.append)
    assert twins.note("a", "u") == []
    assert twins.note("b", "u") == ["a"]
    assert poked == ["a"]
    assert twins.note("a", "u") == ["b"]
    assert twins.note("b", "other") == []
    assert poked == ["a", "a"]
    assert twins.note("a", "u") == []


def test_nobody_is_the_twin_of_a_member_that_says_nothing():
    twins = Twins(lambda _: None)
    twins.note("a", "")
    assert twins.note("b", "") == []
