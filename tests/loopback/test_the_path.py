"""The whole way of a request, by real processes: what a caller gets and what the member's apiserver sees of it."""

from __future__ import annotations

import json

from tests.lab.world import TowerWorld
from tests.loopback.callers import Caller, tunnels, watching
from tests.loopback.conftest import EDGE
from tests.loopback.member import AGENT, BackendMember


def test_a_request_gets_there_under_the_callers_name_and_its_answer_back(
    world: TowerWorld, member: BackendMember, admin: Caller
) -> None:
    answer = admin.ask("/api/v1/path-of-a-request", "Accept: application/json")
    assert (answer.status, json.loads(answer.body)["path"]) == (200, "/api/v1/path-of-a-request")
    (seen,) = member.seen("path-of-a-request")
    assert seen.certificate == AGENT
    assert seen.values("impersonate-user") == [f"tower:{world.host}:admin"]
    assert seen.values("impersonate-group") == [f"tower:{world.host}:cluster-admins"]
    assert seen.values("x-forwarded-for") == ["127.0.0.1"]
    assert seen.values("accept") == ["application/json"]


def test_ten_megabytes_arrive_whole_beside_a_watch(admin: Caller, bystanders: None) -> None:
    assert admin.ask("/bytes/10000000").body == b"z" * 10_000_000


def test_an_upgrade_carries_bytes_both_ways(admin: Caller) -> None:
    with admin.connect() as connection:
        connection.send(connection.request("GET", "/echo", "Connection: Upgrade", "Upgrade: echo"))
        assert connection.line() == b"HTTP/1.1 101 Switching Protocols\r\n"
        while connection.line() != b"\r\n":
            pass
        connection.send(b"there and back\n")
        assert connection.line() == b"there and back\n"


def test_many_streams_share_one_tunnel(world: TowerWorld, admin: Caller) -> None:
    before = tunnels(world, EDGE)
    with watching(admin) as one, watching(admin) as two, watching(admin) as three:
        for stream in (one, two, three):
            stream()
    assert tunnels(world, EDGE) == before
