"""A CA changes its root without a certificate in use becoming bad; agents believe only what a trusted root signed."""

from __future__ import annotations

from typing import Any

import pytest

from certs.ca import Authority, Phase
from certs.errors import AuthorityError, IssueRefused, MessageError, Untrusted
from certs.keys import generate_key
from certs.rotation import announce, announced

NOW = 1_800_000_000.0


@pytest.fixture
def first() -> Authority:
    return Authority.create("hq", at=NOW)


def agent_of(authority: Authority) -> tuple[bytes, ...]:
    return authority.issue_agent("edge-1", "a1", public_key=generate_key().public_key(), at=NOW + 60).chain_der


def test_what_the_old_root_signed_is_good_until_the_end(first: Authority) -> None:
    old = agent_of(first)
    steps = [first, first.with_next(at=NOW)]
    steps += [steps[-1].switched()]
    for state in steps:
        assert state.bundle.identify_agent(old).agent == "a1"
    with pytest.raises(Untrusted, match="was not issued by the tower CA of hq"):
        steps[-1].finished().bundle.identify_agent(old)


def test_the_new_root_signs_from_the_switch_on(first: Authority) -> None:
    both = first.with_next(at=NOW)
    assert both.bundle.is_current(agent_of(both))
    assert first.bundle.identify_agent(agent_of(both)).agent == "a1"  # whoever has not heard yet can still verify it
    later = both.switched()
    new = agent_of(later)
    assert later.bundle.is_current(new)
    assert not later.bundle.is_current(agent_of(both))
    assert both.bundle.identify_agent(new).agent == "a1"
    with pytest.raises(Untrusted):
        first.bundle.identify_agent(new)
    assert [later.finished().bundle.root] == [root for root in both.bundle.roots if root is not both.bundle.root]


def test_each_state_is_kept_whole(first: Authority) -> None:
    state = first
    phases = []
    for step in (lambda a: a, lambda a: a.with_next(at=NOW), Authority.switched, Authority.finished):
        state = step(state)
        again = Authority.from_pem(state.to_pem(), number=state.number)
        assert (again.phase, again.bundle.to_pem()) == (state.phase, state.bundle.to_pem())
        phases.append(again.phase)
    assert phases == [Phase.STEADY, Phase.ANNOUNCED, Phase.SWITCHED, Phase.STEADY]
    assert state.number == 4


def test_steps_come_in_their_order(first: Authority) -> None:
    both = first.with_next(at=NOW)
    for step, following in (
        (first.switched, "start"),
        (first.finished, "start"),
        (both.finished, "switch"),
        (lambda: both.with_next(at=NOW), "switch"),
        (both.switched().switched, "finish"),
    ):
        with pytest.raises(IssueRefused, match="the rotation of the tower CA is at") as caught:
            step()
        assert f"the next step is `towerctl rotate authority {following}`" in caught.value.mend


def test_the_holders_of_an_authority_see_its_next_state(first: Authority) -> None:
    held, later = first, first.with_next(at=NOW).switched()
    held.take_over(later)
    assert held.bundle.is_current(agent_of(held))
    assert held.phase is Phase.SWITCHED
    for earlier in (Authority.create("hq", at=NOW), Authority.create("other", at=NOW)):
        with pytest.raises(AuthorityError, match="does not follow"):
            held.take_over(earlier)


def test_an_announcement_is_believed_by_either_root(first: Authority) -> None:
    trusted = first.bundle
    both = first.with_next(at=NOW)
    number, bundle = announced(announce(both), trusted=trusted, number=0) or (0, trusted)
    assert (number, bundle.to_pem()) == (2, both.bundle.to_pem())
    later = both.switched()
    assert (
        announced(announce(later), trusted=trusted, number=0) is not None
    )  # who missed the first one knows the old root
    assert announced(announce(later.finished()), trusted=bundle, number=2) is not None
    assert announced(announce(both), trusted=bundle, number=2) is None
    with pytest.raises(Untrusted, match="signed by no root that is trusted for hq"):
        announced(announce(later.finished()), trusted=trusted, number=0)


def test_nobody_goes_back_to_a_root_that_was_taken_away(first: Authority) -> None:
    later = first.with_next(at=NOW).switched()
    last = later.finished()
    with pytest.raises(Untrusted, match="has the number 3, and 4 is in force"):
        announced(announce(later), trusted=last.bundle, number=4)


def test_two_announcements_of_one_number_are_not_taken(first: Authority) -> None:
    one, other = first.with_next(at=NOW), first.with_next(at=NOW)
    with pytest.raises(Untrusted, match="have the number 2"):
        announced(announce(other), trusted=one.bundle, number=2)


@pytest.mark.parametrize(
    "change",
    [
        {"number": 9},
        {"number": -1},
        {"number": True},
        {"bundle": "nothing"},
        {"bundle": 1},
        {"signatures": []},
        {"signatures": ["AAAA"]},
        {"signatures": [1]},
        {"signatures": ["AAAA"] * 3},
    ],
    ids=str,
)
def test_what_was_changed_on_the_way_is_refused(first: Authority, change: dict[str, Any]) -> None:
    with pytest.raises((MessageError, Untrusted, AuthorityError)):
        announced({**announce(first.with_next(at=NOW)), **change}, trusted=first.bundle, number=0)


def test_another_host_announces_nothing_here(first: Authority) -> None:
    other = Authority.create("other", at=NOW)
    with pytest.raises(Untrusted):
        announced(announce(other.with_next(at=NOW)), trusted=first.bundle, number=0)
