"""What a server of a host knows of itself: its address, and who has come back since it started."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tower_server.controller.hosting import OwnFacts, own_address
from tower_server.state import Verdict


class Registry:
    def __init__(self, **members):
        self.members = members


def member(ready="False", *, connected=1.0, serving=()):
    return SimpleNamespace(verdict=Verdict("TunnelDown", ready), connected=connected, serving=list(serving), report={})


def test_after_a_start_nothing_is_said_of_who_has_not_come_back_yet():
    members = Registry(back=member("True", serving=[1]), away=member(), new=member(connected=None))
    facts = OwnFacts(members, name="a", address="10.1.0.1")
    assert facts.sight("back").healthy
    assert facts.sight("away") is None
    assert facts.sight("new") is not None
    assert facts.sight("unknown") is None
    facts._started -= 3600
    assert facts.sight("away").tunnels == 0


def test_it_is_the_replica_of_its_slices_and_says_what_it_holds():
    facts = OwnFacts(Registry(a=member(serving=[1]), b=member()), name="tower-0", address="10.1.0.1")
    (replica,) = facts.replicas()
    assert (replica.name, replica.address, replica.clusters) == ("tower-0", "10.1.0.1", {"a"})
    assert OwnFacts(Registry(), name="tower-0", address="").replicas() == ()


@pytest.mark.parametrize("apiserver", ["127.0.0.1:6443", "[::1]:6443", "no-such-name.invalid:6443"])
def test_an_address_that_no_slice_may_hold_is_none(apiserver):
    assert own_address(apiserver) == ""
