"""What a server knows of the leader's end by its links to the others."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from protocol import defaults
from tests.tower_server.replicas.kit import AUTHORITY
from tower_server.replicas.replicas import OVERDUE, Replicas

pytestmark = pytest.mark.asyncio


def knows(**link: Any) -> Replicas:
    """A server `a` with a link to process `i1` of server `b`."""
    nothing: Any = SimpleNamespace(members={})
    replicas = Replicas(
        authority=AUTHORITY, name="a", registry=nothing, clusters=nothing, start=lambda work, _name: work.close()
    )
    peer = SimpleNamespace(name="b", instance="i1")
    told = {"up": False, "was_up": True, "refused": False, "peer": peer, **link}
    replicas.links["b"] = SimpleNamespace(**told)  # type: ignore[assignment]
    return replicas


async def test_a_process_that_was_there_and_no_longer_listens_need_not_be_waited_for():
    assert knows(refused=True).grace("b_i1") == 0.0


async def test_one_that_is_not_heard_of_is_given_the_time_of_a_renewal():
    assert knows().grace("b_i1") == OVERDUE
    assert 1.2 * defaults.LEASE_RETRY < OVERDUE < defaults.LEASE_DURATION


async def test_nothing_is_known_of_one_that_is_heard_of_or_never_was():
    assert knows(up=True).grace("b_i1") is None
    assert knows(was_up=False, refused=True).grace("b_i1") is None, "a port that is closed to us says nothing"
    assert knows().grace("stranger_i9") is None


async def test_a_process_whose_name_another_has_by_now_is_taken_for_silent_not_for_gone():
    assert knows(up=True).grace("b_i0") == OVERDUE
    assert knows(refused=True).grace("b_i0") == OVERDUE
    replicas = knows()
    assert replicas.grace("a_" + "0" * 16) == OVERDUE, "this server's own, of before its restart"
    assert replicas.grace(replicas.identity) is None


async def test_whoever_waits_for_the_end_of_others_is_told():
    replicas, told = knows(), asyncio.Event()
    replicas.lost = told.set
    link: Any = replicas.links["b"]
    link.serving = link.up = True
    replicas._link_changed(link, set(), "")
    assert not told.is_set()
    link.serving = link.up = False
    replicas._link_changed(link, set(), "it is gone")
    assert told.is_set()
