"""The life of a stream as a table: every pair of state and input, and the sets that the hot path asks instead."""

from __future__ import annotations

import pytest

from protocol.defaults import MIB
from protocol.flow import Budget, Limits, ReceiveCredit
from protocol.streams import MAY_RECEIVE, MAY_SEND, TRANSITIONS, Input, State, Stream

ANSWERED = {State.OPEN, State.FINISHED, State.PEER_FINISHED, State.BOTH_FINISHED}


@pytest.mark.parametrize("state", State)
def test_the_sets_of_the_hot_path_say_what_the_table_says(state: State) -> None:
    assert (state in MAY_SEND) == ((state, Input.S_DATA) in TRANSITIONS) == ((state, Input.S_FIN) in TRANSITIONS)
    assert (state in MAY_RECEIVE) == ((state, Input.R_DATA) in TRANSITIONS) == ((state, Input.R_FIN) in TRANSITIONS)


@pytest.mark.parametrize("state", State)
def test_data_changes_no_state(state: State) -> None:
    for what in (Input.S_DATA, Input.R_DATA):
        assert TRANSITIONS.get((state, what), state) is state


@pytest.mark.parametrize("state", [state for state in State if state is not State.CLOSED])
def test_every_stream_can_be_reset_from_both_ends(state: State) -> None:
    assert TRANSITIONS[state, Input.S_RST] is TRANSITIONS[state, Input.R_RST] is State.CLOSED


def test_nothing_follows_the_end() -> None:
    assert not [what for state, what in TRANSITIONS if state is State.CLOSED]


def test_only_an_opener_gets_an_answer_and_only_the_asked_gives_one() -> None:
    for what, states in (
        (Input.R_OK, {State.OPENING, State.OPENING_FINISHED}),
        (Input.R_ERR, {State.OPENING, State.OPENING_FINISHED}),
        (Input.S_OK, {State.ASKED, State.ASKED_FINISHED}),
        (Input.S_ERR, {State.ASKED, State.ASKED_FINISHED}),
    ):
        assert {state for state, found in TRANSITIONS if found is what} == states


def test_each_direction_is_finished_once() -> None:
    for what in (Input.S_FIN, Input.R_FIN):
        for (state, found), after in TRANSITIONS.items():
            if found is what:
                assert (after, what) not in TRANSITIONS, f"{what} twice, from {state}"


def mirrored(what: Input) -> Input:
    """What the other end sees."""
    return Input[("R" if what.name[0] == "S" else "S") + what.name[1:]]


def test_two_ends_that_hear_each_other_at_once_always_agree() -> None:
    """Walks every reachable pair of states: what one end may send, the other may receive."""
    reached = {(State.OPENING, State.ASKED)}
    waiting = list(reached)
    while waiting:
        ours, theirs = waiting.pop()
        for what in Input:
            if what.name[0] != "S":
                continue
            for pair in ((ours, theirs), (theirs, ours)):
                after = TRANSITIONS.get((pair[0], what))
                if after is None:
                    continue
                other = TRANSITIONS.get((pair[1], mirrored(what)))
                assert other is not None, f"{what.value} from {pair[0].value} finds the peer {pair[1].value}"
                step = (after, other) if pair[0] is ours else (other, after)
                if step not in reached:
                    reached.add(step)
                    waiting.append(step)
    assert {state for pair in reached for state in pair} == set(State)


def test_a_stream_is_sendable_by_credit_or_by_its_fin() -> None:
    stream = Stream(1, State.OPEN, ReceiveCredit(Budget(MIB), Limits()), send_limit=0)
    assert not stream.sendable
    stream.queued = 1
    assert not stream.sendable, "no credit"
    stream.fin_queued = True
    assert not stream.sendable, "FIN does not overtake data"
    stream.send_limit = 1
    assert stream.sendable
    stream.queued = 0
    stream.send_limit = 0
    assert stream.sendable, "FIN needs no credit"
