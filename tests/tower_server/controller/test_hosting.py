"""What a server of a host knows of itself: its address, and who has come back since it started."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from tower_server.controller.desired import serving
from tower_server.controller.hosting import ASKED_EVERY, OwnFacts, Unheard, slice_address, way_address
from tower_server.flapping import Flaps
from tower_server.replicas.asking import Silent
from tower_server.replicas.directory import Peer
from tower_server.state import Verdict


class Registry:
    def __init__(self, **members):
        self.members = members


class Others:
    def __init__(self, *serving, ready=True):
        self.ready = ready
        self._serving = serving

    def serving(self):
        return self._serving


def member(ready="False", *, connected=1.0, serving=(), elsewhere=0):
    return SimpleNamespace(
        verdict=Verdict("TunnelDown", ready),
        connected=connected,
        serving=list(serving),
        tunnels_of_host=len(serving) + elsewhere,
        known_report={},
        flaps=Flaps(),
    )


def peer(name, address):
    return Peer(name, "1", address, 8444, address)


def test_after_a_start_nothing_is_said_of_who_has_not_come_back_yet():
    members = Registry(back=member("True", serving=[1]), away=member(), new=member(connected=None))
    facts = OwnFacts(members, Others(), name="a", address="10.1.0.1", resume_window=40.0)
    later = OwnFacts(members, Others(), name="a", address="10.1.0.1", resume_window=0.0)
    assert facts.observed("back").healthy
    assert facts.observed("away") is None
    assert facts.observed("new") is not None
    assert facts.observed("unknown") is None
    assert later.observed("away").tunnels == 0, "tunnels of before would be back by now"


@pytest.mark.asyncio
async def test_servers_that_have_not_heard_are_asked_once_in_a_while():
    now, asked = 100.0, []

    async def ask():
        asked.append(now)
        return [Silent("tower-1", "no answer within 4 s")]

    unheard = Unheard(ask, clock=lambda: now)
    found = await asyncio.gather(*(unheard() for _ in range(100)))
    assert {*map(tuple, found)} == {("tower-1 has not heard of it: no answer within 4 s",)}
    assert asked == [100.0]
    now += ASKED_EVERY
    await unheard()
    assert asked == [100.0, 110.0]


def test_it_is_the_replica_of_its_slices_and_says_what_it_holds():
    facts = OwnFacts(
        Registry(a=member(serving=[1]), b=member()), Others(), name="tower-0", address="10.1.0.1", resume_window=40.0
    )
    (replica,) = facts.replicas()
    assert (replica.name, replica.address, replica.clusters) == ("tower-0", "10.1.0.1", {"a"})
    assert OwnFacts(Registry(), Others(), name="tower-0", address="", resume_window=40.0).replicas() == []


def test_callers_are_sent_to_those_that_hold_the_tunnels_and_else_to_all_that_are_ready():
    others = Others((peer("tower-1", "10.1.0.2"), frozenset({"b"})), (peer("tower-2", ""), frozenset({"c"})))
    facts = OwnFacts(Registry(a=member(serving=[1])), others, name="tower-0", address="10.1.0.1", resume_window=40.0)

    def sent_to(cluster):
        return [each.name for each in serving(cluster, facts.replicas())]

    assert sent_to("a") == ["tower-0"]
    assert sent_to("b") == ["tower-1"]
    assert sent_to("c") == ["tower-0", "tower-1"], "the owner has no address that a slice may hold"
    others.ready = False
    assert sent_to("nobodys") == ["tower-1"], "this server stops"


def flapping(*, tunnel):
    found = Flaps()
    for at in (1.0, 2.0, 3.0):
        found.lost(at, tunnel=tunnel)
    return found


def test_a_cluster_that_comes_and_goes_moves_no_slice_and_is_not_healthy():
    others = Others((peer("tower-1", "10.1.0.2"), frozenset({"b"})))
    here, there = member("True", serving=[1]), member("True", elsewhere=1)
    facts = OwnFacts(Registry(a=here, b=there), others, name="tower-0", address="10.1.0.1", resume_window=40)
    before = [each.name for each in serving("a", facts.replicas())]
    assert (before, facts.observed("a").healthy) == (["tower-0"], True)
    for each in (here, there):
        each.flaps = flapping(tunnel=True)
    for name in ("a", "b"):
        assert [each.name for each in serving(name, facts.replicas())] == ["tower-0", "tower-1"]
        assert not facts.observed(name).healthy
        assert facts.observed(name).tunnel_flaps
    here.serving.clear()
    assert [each.name for each in serving("a", facts.replicas())] == ["tower-0", "tower-1"]


def test_a_member_of_another_server_is_seen_as_that_one_sees_it():
    facts = OwnFacts(
        Registry(far=member("True", elsewhere=2)), Others(), name="a", address="10.1.0.1", resume_window=40.0
    )
    assert facts.observed("far").healthy
    assert facts.observed("far").tunnels == 2


def test_the_address_is_that_of_the_way_to_the_apiserver():
    assert way_address("127.0.0.1:6443") == "127.0.0.1"
    assert way_address("[::1]:6443") in ("::1", "")  # where the machine has no IPv6 there is no way
    assert way_address("no-such-name.invalid:6443") == ""


@pytest.mark.parametrize(("address", "kept"), [("127.0.0.1", ""), ("::1", ""), ("10.1.0.1", "10.1.0.1"), ("", "")])
def test_an_address_that_no_slice_may_hold_is_none(address, kept):
    assert slice_address(address) == kept
