"""A cluster that comes and goes: told once, until it has been well for a while, and longer if it begins again."""

from __future__ import annotations

import pytest

from protocol.defaults import HOLD
from tower_server.flapping import LOSSES, STEADY, WITHIN, Flaps

NOW = 1_800_000_000.0


def lose(flaps: Flaps, at: float, times: int = 1, *, every: float = 10.0, tunnel: bool = True) -> float:
    """Lost and well again so many times; when it was well again for the last time."""
    for _ in range(times):
        flaps.lost(at, tunnel=tunnel)
        flaps.look(at, well=False)
        flaps.look(at + every / 2, well=True)
        at += every
    return at - every / 2


def test_two_losses_are_an_outage_and_three_are_a_habit() -> None:
    flaps = Flaps()
    lose(flaps, NOW, LOSSES - 1)
    assert (flaps.since, flaps.said()) == (None, "")
    lose(flaps, NOW + 100)
    assert flaps.since == NOW + 100
    assert "lost 3 times within 10 min" in flaps.said()
    assert "well for 60 s" in flaps.said()


def test_losses_of_long_ago_do_not_count() -> None:
    flaps = Flaps()
    for number in range(2 * LOSSES):
        lose(flaps, NOW + number * WITHIN)
    assert flaps.since is None


def test_it_ends_when_it_has_been_well_without_a_break() -> None:
    flaps = Flaps()
    back = lose(flaps, NOW, LOSSES)
    flaps.look(back + STEADY - 1, well=True)
    assert flaps.since is not None
    flaps.look(back + STEADY - 0.5, well=False)
    flaps.look(back + STEADY, well=True)
    flaps.look(back + STEADY + 1, well=True)
    assert flaps.since is not None, "the count begins anew"
    flaps.look(back + 2 * STEADY, well=True)
    assert flaps.since is None


def test_what_is_said_does_not_change_while_it_flaps() -> None:
    flaps = Flaps()
    back = lose(flaps, NOW, LOSSES)
    since, said = flaps.since, flaps.said()
    lose(flaps, back + 5, 20)
    assert (flaps.since, flaps.said()) == (since, said)


def test_who_begins_again_has_to_be_well_for_longer_and_at_last_for_the_whole_time() -> None:
    flaps, at, asked = Flaps(), NOW, []
    for _ in range(5):
        back = lose(flaps, at, LOSSES)
        asked.append(flaps.steady)
        assert flaps.since is not None
        at = back + flaps.steady
        flaps.look(at, well=True)
        assert flaps.since is None
    assert asked == [60, 120, 240, 480, 600]
    lose(flaps, at + 1)
    assert flaps.steady == STEADY, "it has been quiet for as long as is looked back"


@pytest.mark.parametrize(("tunnel", "of_tunnel"), [(True, True), (False, False)])
def test_what_flaps_is_the_tunnel_or_only_what_is_behind_it(tunnel: bool, of_tunnel: bool) -> None:
    flaps = Flaps()
    lose(flaps, NOW, LOSSES, tunnel=tunnel)
    assert flaps.of_tunnel is of_tunnel
    lose(flaps, NOW + 60, tunnel=True)
    assert flaps.of_tunnel


def test_a_proxy_that_ends_each_connection_after_a_while_makes_nothing_flap() -> None:
    flaps = Flaps()
    flaps.look(NOW, well=True)
    lose(flaps, NOW + 30, 40, every=2 * HOLD)
    assert flaps.since is not None, "it is lost all the time"
    flaps = Flaps()
    flaps.look(NOW, well=True)
    for number in range(1, 41):
        lose(flaps, NOW + 30 * number, every=0.5)
    assert flaps.since is None
    lose(flaps, NOW + 2000, LOSSES)
    assert flaps.since is not None
    for number in range(1, 4):
        lose(flaps, NOW + 2030 + 30 * number, every=0.5)
        flaps.look(NOW + 2055 + 30 * number, well=True)
    assert flaps.since is None, "nor does it keep it from settling"


@pytest.mark.parametrize(("tunnel", "away"), [(False, 0.2), (True, HOLD + 0.5)])
def test_what_callers_notice_counts(tunnel: bool, away: float) -> None:
    flaps = Flaps()
    flaps.look(NOW, well=True)
    for number in range(1, LOSSES + 1):
        lose(flaps, NOW + 30 * number, every=2 * away, tunnel=tunnel)
    assert flaps.since is not None
