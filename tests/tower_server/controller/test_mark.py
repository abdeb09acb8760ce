"""Whose a member is, by the marks of hosts in it."""

from __future__ import annotations

from tower_server.controller.mark import Mark, Owner, in_the_way, mark_body, mark_name, ours, read_mark

US = Owner("here", "uid-here", "edge")


def mark(host, at, *, shared=False):
    return Mark(Owner(host, f"uid-{host}", "edge"), at, shared, mark_name(host), "1")


def test_a_mark_is_read_as_it_was_written():
    body = mark_body(US)
    body["metadata"] |= {"creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "7"}
    assert read_mark(body) == Mark(US, "2026-01-01T00:00:00Z", False, "tower-host-here", "7")
    body["metadata"]["annotations"] = {"tower.kubesphere.io/shared": "True"}
    assert read_mark(body).shared


def test_a_mark_that_somebody_has_emptied_still_stands_for_somebody():
    found = read_mark({"metadata": {"name": "tower-host-x", "creationTimestamp": "1"}})
    assert found.owner == Owner("", "", "")
    assert in_the_way([found], US, served_too=()) == found


def test_the_oldest_mark_has_the_member():
    first, second = mark("berlin", "2026-01-01"), mark("paris", "2026-01-02")
    assert in_the_way([second, first], US, served_too=()) == first
    assert in_the_way([], US, served_too=()) is None


def test_ours_gives_way_to_an_older_one_and_to_no_younger_one():
    own = mark("here", "2026-01-02")
    older, younger = mark("berlin", "2026-01-01"), mark("paris", "2026-01-03")
    assert in_the_way([own, younger], US, served_too=()) is None
    assert in_the_way([own, older], US, served_too=()) == older
    assert ours([older, own], US) == own


def test_of_two_of_one_second_exactly_one_gives_way():
    own, other = mark("here", "2026-01-01"), mark("a-host", "2026-01-01")
    assert in_the_way([own, other], US, served_too=()) == other
    assert in_the_way([own, other], Owner("a-host", "uid-a-host", "edge"), served_too=()) is None


def test_a_shared_one_is_in_nobodys_way_nor_is_a_host_that_the_agent_serves_too():
    shared, other = mark("berlin", "2026-01-01", shared=True), mark("paris", "2026-01-02")
    assert in_the_way([shared], US, served_too=()) is None
    assert in_the_way([shared, other], US, served_too=()) == other
    assert in_the_way([shared, other], US, served_too={"paris"}) is None
