"""What is known of a peer by what it answers."""

from __future__ import annotations

import pytest

from protocol.liveness import RTT_SAMPLES, RTT_STALE_AFTER, Liveness


def test_the_round_trip_is_the_least_of_the_last_samples() -> None:
    liveness = Liveness(0.0)
    assert liveness.rtt is None
    for sent, seconds in enumerate((0.3, 0.1, 0.2)):
        token = liveness.ask(float(sent), linked=True)
        assert liveness.answered(token, sent + seconds) == pytest.approx(seconds)
    assert liveness.rtt == pytest.approx(0.1)
    for sent in range(3, 3 + RTT_SAMPLES):
        liveness.answered(liveness.ask(float(sent), linked=True), sent + 0.5)
    assert liveness.rtt == pytest.approx(0.5), "an old measure is no measure"
    liveness.new_link(20.0)
    liveness.answered(liveness.ask(20.0, linked=True), 21.0)
    assert liveness.rtt == pytest.approx(1.0), "nor is one of another link"


def test_an_answer_counts_once_and_only_for_what_was_asked_on_this_link() -> None:
    liveness = Liveness(0.0)
    token = liveness.ask(1.0, linked=True)
    assert liveness.answered(token + 1, 2.0) is None
    assert liveness.answered(token, 2.0) == 1.0
    assert liveness.answered(token, 3.0) is None
    lost = liveness.ask(3.0, linked=True)
    liveness.link_lost()
    assert liveness.answered(lost, 4.0) is None
    assert liveness.answered(liveness.ask(5.0, linked=False), 6.0) is None
    assert liveness.asked_since(7.0) == 7.0, "nothing is owed"


def test_the_oldest_question_is_what_is_owed_and_few_are_kept() -> None:
    liveness = Liveness(0.0)
    asked = [liveness.ask(float(at), linked=True) for at in range(3 * RTT_SAMPLES)]
    assert liveness.asked_since(99.0) == 0.0
    assert [token for token in asked if liveness.answered(token, 99.0) is not None] == asked[:RTT_SAMPLES]


def test_a_question_that_was_passed_over_is_owed_no_more_once_a_later_one_is_answered() -> None:
    """Or its peer would be deaf at the age at which a measure is taken anew, while the answer to that is on its way."""
    liveness = Liveness(0.0)
    passed_over, answered, last = (liveness.ask(float(at), linked=True) for at in (0, 1, 2))
    assert liveness.answered(answered, 3.0) == 2.0
    assert liveness.asked_since(4.0) == 2.0
    assert liveness.answered(passed_over, 5.0) is None
    liveness.answered(last, 5.0)
    assert liveness.asked_since(6.0) == 6.0, "nothing is owed"


def test_asking_is_due_after_silence_and_when_the_measure_is_stale() -> None:
    liveness = Liveness(0.0)
    assert liveness.due(5.0) == 5.0
    liveness.heard_at = 4.0
    assert liveness.due(5.0) == 9.0
    liveness.heard_at = RTT_STALE_AFTER - 1
    assert liveness.due(5.0) == RTT_STALE_AFTER, "a busy peer is measured too"
    liveness.new_link(40.0)
    assert liveness.due(5.0) == 45.0
