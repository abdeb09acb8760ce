"""Credit and budgets: what is granted is bounded, grows and shrinks as it should, and comes back to the byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.defaults import KIB, MIB
from protocol.flow import GRANT_EVERY, PRESSURE, PROVEN, SHARES, Budget, Limits, ReceiveCredit

LIMITS = Limits()


def taken(budget: Budget, size: int) -> bool:
    """All or nothing, as whoever lends from a budget does."""
    if size > budget.free:
        return False
    budget.charge(size)
    return True


def test_a_budget_gives_all_or_nothing_and_within_its_parent() -> None:
    process = Budget(100)
    first, second = Budget(80, process), Budget(80, process)
    assert taken(first, 60)
    assert not taken(second, 41)
    assert (first.used, second.used, process.used) == (60, 0, 60)
    assert second.free == 40
    assert taken(second, 40)
    assert not taken(first, 1)
    first.give(60)
    second.give(40)
    assert (first.used, second.used, process.used) == (0, 0, 0)


def test_bytes_that_exist_are_charged_even_above_the_limit_and_press() -> None:
    budget = Budget(100)
    budget.charge(75)
    assert not budget.pressed
    budget.charge(50)
    assert budget.pressed
    assert budget.free == 0


def test_pressure_of_the_process_presses_every_tunnel() -> None:
    process = Budget(100)
    idle = Budget(100, process)
    process.charge(int(100 * PRESSURE) + 1)
    assert idle.pressed


def test_a_tunnel_that_has_nothing_yet_is_one_of_those_that_share() -> None:
    process = Budget(100)
    first, second = Budget(100, process), Budget(100, process)
    first.charge(30)
    assert (first.free, second.free) == (70, 50)


def test_what_all_tunnels_may_have_without_need_is_one_quarter_together() -> None:
    process = Budget(100)
    first, second = Budget(100, process), Budget(100, process)
    first.charge(20)
    assert second.spare == 5
    first.charge(5)
    assert second.spare == 0


def test_a_window_grows_no_further_than_the_budget() -> None:
    budget = Budget(1 * MIB)
    credit = ReceiveCredit(budget, LIMITS)
    for at in (0.0, 0.001):
        credit.consume(credit.granted - credit.consumed, at, 0.1)
    assert credit.window == budget.used == 512 * KIB
    budget.charge(200 * KIB)
    assert not budget.pressed
    credit.consume(credit.granted - credit.consumed, 0.002, 0.1)
    assert (credit.window, budget.used) == (824 * KIB, budget.limit)


@pytest.mark.parametrize(
    "wrong",
    [
        {"reserved_credit": 0},
        {"reserved_credit": 2 * LIMITS.initial_credit},
        {"initial_credit": 2 * LIMITS.max_credit},
        {"ping_interval": 0.0},
        {"ping_interval": LIMITS.dead_after},
    ],
)
def test_limits_that_contradict_each_other_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Limits(**wrong)


def test_a_stream_starts_with_the_initial_credit_where_there_is_room() -> None:
    budget = Budget(10 * MIB)
    credit = ReceiveCredit(budget, LIMITS)
    assert credit.granted == credit.window == budget.used == 256 * KIB


def test_a_stream_starts_with_its_reserve_under_pressure() -> None:
    budget = Budget(1 * MIB)
    budget.charge(900 * KIB)
    credit = ReceiveCredit(budget, LIMITS)
    assert credit.granted == 16 * KIB
    assert budget.used == 916 * KIB


def drain(credit: ReceiveCredit, seconds: float, rtt: float, rounds: int) -> None:
    """A peer that sends all it may and a reader that takes a window in `seconds`."""
    now = 0.0
    for _ in range(rounds):
        now += seconds
        credit.consume(credit.granted - credit.consumed, now, rtt)


def test_a_fast_reader_on_a_long_path_gets_a_window_up_to_the_maximum() -> None:
    budget = Budget(64 * MIB)
    credit = ReceiveCredit(budget, LIMITS)
    drain(credit, 0.15, 0.1, 12)
    assert credit.window == LIMITS.max_credit == budget.used


def test_a_wide_window_is_renewed_long_before_half_of_it_was_read() -> None:
    credit = ReceiveCredit(Budget(64 * MIB), LIMITS)
    drain(credit, 0.15, 0.1, 12)
    grants = []
    for _ in range(512):
        assert credit.granted - credit.consumed > LIMITS.max_credit - GRANT_EVERY, "what a path could hold is missing"
        grants.append(credit.consume(64 * KIB, 1e3, 0.1))
    assert len(grants) - grants.count(None) == 32 * MIB // GRANT_EVERY, "no more frames than that takes"


def test_a_wide_window_renewed_in_steps_grows_by_what_a_round_trip_takes_as_one_renewed_by_halves() -> None:
    for seconds, grown in ((0.19, 2), (0.21, 1)):  # for half of it, where a round trip is 0.1
        credit = ReceiveCredit(Budget(64 * MIB), LIMITS)
        drain(credit, 0.15, 0.1, 6)
        window, now = credit.window, 10.0
        assert window > 2 * GRANT_EVERY
        for _ in range(2 * window // MIB):
            now += seconds * MIB / (window / 2)
            credit.consume(MIB, now, 0.1)
            if credit.window > window:
                break
        assert credit.window == grown * window


def test_a_slow_reader_keeps_its_window() -> None:
    budget = Budget(64 * MIB)
    credit = ReceiveCredit(budget, LIMITS)
    drain(credit, 0.25, 0.1, 12)
    assert credit.window == LIMITS.initial_credit


def test_a_reader_beside_its_peer_gets_wide_windows_although_its_loop_takes_longer_than_a_ping() -> None:
    credit = ReceiveCredit(Budget(64 * MIB), LIMITS)
    drain(credit, 0.009, 0.0001, 12)
    assert credit.window == LIMITS.max_credit


def test_growth_stops_at_the_budget() -> None:
    budget = Budget(1 * MIB)
    credit = ReceiveCredit(budget, LIMITS)
    drain(credit, 0.01, 0.1, 12)
    assert budget.used <= 1 * MIB
    assert credit.granted - credit.consumed <= credit.window


def test_pressure_shrinks_a_window_to_the_reserve_but_takes_no_grant_back() -> None:
    budget = Budget(1 * MIB)
    credit = ReceiveCredit(budget, LIMITS)
    budget.charge(900 * KIB)
    before = credit.granted
    for _ in range(200):
        credit.consume(4 * KIB, 100.0, 0.1)
        assert credit.granted >= before
        assert credit.granted - credit.consumed <= credit.window
        before = credit.granted
    assert credit.window == 16 * KIB
    assert credit.granted > credit.consumed, "a reader that reads is never left without credit"


def test_pressure_gives_back_no_memory_that_a_wide_window_has_granted() -> None:
    budget = Budget(64 * MIB)
    credit = ReceiveCredit(budget, LIMITS)
    drain(credit, 0.15, 0.1, 12)
    budget.charge(32 * MIB)
    credit.consume(GRANT_EVERY, 1e3, 0.1)
    assert credit.window == budget.used - 32 * MIB == LIMITS.max_credit - GRANT_EVERY


@given(
    limit=st.integers(16 * KIB, 2 * MIB),
    steps=st.lists(st.tuples(st.integers(1, 300_000), st.floats(0, 1), st.integers(-400_000, 400_000)), max_size=60),
)
def test_the_window_is_charged_to_the_byte_whatever_happens(limit, steps) -> None:
    budget = Budget(limit)
    credit = ReceiveCredit(budget, LIMITS)
    now, others = 0.0, 0
    for size, pause, change in steps:
        now += pause
        change = max(change, -others)
        others += change
        budget.charge(change)
        grant = credit.consume(min(size, credit.granted - credit.consumed), now, 0.1)
        assert grant is None or grant == credit.granted
        assert budget.used == credit.window + others
        assert LIMITS.reserved_credit <= credit.window <= LIMITS.max_credit
        assert 0 <= credit.granted - credit.consumed <= credit.window
    while credit.granted > credit.consumed:
        if credit.consume(credit.granted - credit.consumed, now, 0.1) is not None:
            break
    else:
        pytest.fail("all consumed and no new grant: the stream would stand still for ever")
    credit.release()
    assert budget.used == others


def test_no_tunnel_of_several_takes_the_whole_process() -> None:
    process = Budget(48 * MIB)
    greedy, other = Budget(48 * MIB, process), Budget(48 * MIB, process)
    assert greedy.free == 48 * MIB, "alone, a tunnel may have all"
    other.charge(16 * KIB)
    while taken(greedy, 16 * KIB):
        pass
    assert greedy.full
    assert greedy.used < 37 * MIB
    assert not other.full
    assert taken(other, 11 * MIB), "what the greedy one has left is the other's"
    greedy.give(greedy.used)
    assert other.free >= 24 * MIB - other.used, "its share"
    other.give(other.used)
    assert taken(greedy, 48 * MIB), "and alone again, all of it"


def test_each_tunnel_may_take_its_even_share_however_full_the_process_is() -> None:
    process = Budget(100)
    tunnels = [Budget(100, process) for _ in range(4)]
    assert all(taken(tunnel, 25) for tunnel in tunnels)
    assert process.used == 100


def test_what_streams_start_with_leaves_three_quarters_of_the_budget_to_those_who_read() -> None:
    budget = Budget(8 * MIB)
    windows = [ReceiveCredit(budget, LIMITS).window for _ in range(10)]
    assert windows[:8] == [LIMITS.initial_credit] * 8
    assert windows[8:] == [LIMITS.reserved_credit] * 2


def test_a_proven_reader_keeps_a_share_of_a_pressed_budget_and_others_their_reserve() -> None:
    budget = Budget(64 * MIB)
    proven, other = ReceiveCredit(budget, LIMITS), ReceiveCredit(budget, LIMITS)
    now = 0.0
    while proven.consumed < PROVEN:
        now += 0.001
        proven.consume(proven.granted - proven.consumed, now, 0.01)
    budget.charge(int(PRESSURE * budget.limit))  # of others, who have stopped
    for credit in (proven, other):
        for _ in range(20):
            now += 0.001
            credit.consume(credit.granted - credit.consumed, now, 0.01)
    assert proven.window == budget.limit // SHARES
    assert other.window == LIMITS.reserved_credit
