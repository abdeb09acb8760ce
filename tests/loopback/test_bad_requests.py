"""What reaches a cluster's port and is no good request: a clear refusal, counted and logged, and nobody else disturbed.

Every test runs beside two streams (one in the same tunnel) that must not miss a line, and none of what it sends may
reach the member. Nothing secret of a refused request may stand in the log either.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from pathlib import Path

import pytest

from tests.lab.world import TowerWorld
from tests.loopback.callers import PATIENCE, Caller, ended, logs, metrics, moves
from tests.loopback.conftest import DEADLINES, EDGE
from tests.loopback.member import AGENT, BackendMember

pytestmark = pytest.mark.usefixtures("bystanders")

SECRET = "bad-request-secret-9f8e7d"
BEARER = f"Authorization: Bearer {SECRET}\r\n"
TLS_FAILED = "tower_agent_caller_tls_failures_total"


@pytest.fixture
def agent_log(world: TowerWorld) -> Path:
    return world.members[EDGE].agent.log


def denied(code: str) -> str:
    return f'tower_agent_denied_total{{reason="{code}"}}'


# ---- before there is a request ---------------------------------------------------------------------------------------


def test_plain_http_is_told_that_this_port_speaks_tls(world: TowerWorld, admin: Caller, agent_log: Path) -> None:
    with (
        moves(world, TLS_FAILED, cluster=EDGE),
        logs(agent_log, "caller-tls-failed", "TWR413", without=(SECRET,)),
        admin.plain() as bare,
    ):
        bare.sendall(f"GET /plain-http HTTP/1.1\r\nHost: k\r\n{BEARER}\r\n".encode())
        answer = ended(bare)
    assert answer.startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 400 ")), answer[:200]
    assert b"https" in answer.lower()


def test_garbage_ends_the_connection_and_is_counted(world: TowerWorld, admin: Caller, agent_log: Path) -> None:
    with (
        moves(world, TLS_FAILED, cluster=EDGE),
        logs(agent_log, "caller-tls-failed", "127.0.0.1"),
        admin.plain() as bare,
    ):
        bare.sendall(bytes(range(256)) * 16)
        ended(bare)


def test_half_a_hello_is_dropped_at_the_deadline(world: TowerWorld, admin: Caller, agent_log: Path) -> None:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40)
    with (
        moves(world, TLS_FAILED, cluster=EDGE),
        logs(agent_log, "caller-tls-failed", "timeout|within|deadline"),
        admin.plain() as bare,
    ):
        bare.sendall(hello)
        began = time.monotonic()
        ended(bare)
    assert time.monotonic() - began > DEADLINES["HANDSHAKE_DEADLINE"] - 0.1


def test_a_silent_connection_is_dropped_at_the_deadline(world: TowerWorld, admin: Caller) -> None:
    with moves(world, TLS_FAILED, cluster=EDGE), admin.plain() as bare:
        ended(bare)


def test_a_reset_in_the_middle_of_a_request_leaves_nothing_behind(world: TowerWorld, admin: Caller) -> None:
    for _ in range(20):
        bare = admin.plain()
        bare.sendall(b"\x16\x03\x01")
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        bare.close()
    series = f'tower_streams{{member_cluster="{EDGE}",service="kubernetes"}}'
    end = time.monotonic() + PATIENCE
    while (left := metrics(world)[series]) > 3:  # the admin's own watch, and a probe now and then
        assert time.monotonic() < end, left


# ---- malformed requests ----------------------------------------------------------------------------------------------

MALFORMED = {
    "two-lengths": (b"POST /m1 HTTP/1.1\r\nHost: k\r\nContent-Length: 3\r\nContent-Length: 4\r\n", b"abcd"),
    "length-and-chunked": (
        b"POST /m2 HTTP/1.1\r\nHost: k\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: k\r\n\r\n",
    ),
    "bare-lf": (b"GET /m3 HTTP/1.1\nHost: k\n", b""),
    "folded-line": (b"GET /m4 HTTP/1.1\r\nHost: k\r\nX-A: b\r\n c\r\n", b""),
    "space-before-colon": (b"GET /m5 HTTP/1.1\r\nHost: k\r\nTransfer-Encoding : chunked\r\n", b""),
    "nul-in-a-value": (b"GET /m6 HTTP/1.1\r\nHost: k\r\nX-A: a\x00b\r\n", b""),
    "two-hosts": (b"GET /m7 HTTP/1.1\r\nHost: k\r\nHost: l\r\n", b""),
    "absolute-target": (b"GET https://k/m8 HTTP/1.1\r\nHost: k\r\n", b""),
    "connect": (b"CONNECT k:443 HTTP/1.1\r\nHost: k\r\n", b""),
    "http-2-preface": (b"PRI * HTTP/2.0\r\n", b"SM\r\n\r\n"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_gets_400_and_never_reaches_the_member(
    world: TowerWorld, member: BackendMember, admin: Caller, agent_log: Path, name: str
) -> None:
    head, rest = MALFORMED[name]
    newline = b"\n" if name == "bare-lf" else b"\r\n"
    before = (member.folder / "requests.jsonl").read_text()
    with (
        moves(world, denied("TWR409"), cluster=EDGE),
        logs(agent_log, "request", '"code": ?400|code=400', "TWR409", without=(SECRET,)),
    ):
        status, document = admin.say(head + BEARER.encode().rstrip(b"\r\n") + newline + newline + rest)
    assert (status, document["kind"], document["reason"]) == (400, "Status", "BadRequest")
    assert "TWR409" in document["message"]
    new = (member.folder / "requests.jsonl").read_text()[len(before) :]
    assert not any(text in new for text in ("/m1", "/m2", "/m4", "/m5", "/m6", "/m7", "/m8", "smuggled", SECRET))


def test_a_head_of_a_mebibyte_gets_431(world: TowerWorld, admin: Caller, agent_log: Path) -> None:
    head = f"GET /huge HTTP/1.1\r\nHost: k\r\n{BEARER}X-Filler: ".encode() + b"f" * (1 << 20) + b"\r\n\r\n"
    with moves(world, denied("TWR410"), cluster=EDGE), logs(agent_log, "request", "431", without=(SECRET, "ffffffff")):
        status, document = admin.say(head)
    assert (status, document["code"]) == (431, 431)
    assert "65536 bytes" in document["message"]


def test_too_many_fields_get_431(world: TowerWorld, admin: Caller) -> None:
    fields = "".join(f"X-{number}: y\r\n" for number in range(300))
    with moves(world, denied("TWR410"), cluster=EDGE):
        status, document = admin.say(f"GET /fields HTTP/1.1\r\nHost: k\r\n{fields}\r\n".encode())
    assert status == 431
    assert "200 header fields" in document["message"]


def test_half_a_head_gets_408_at_the_deadline(world: TowerWorld, admin: Caller) -> None:
    with moves(world, denied("TWR408"), cluster=EDGE):
        status, document = admin.say(b"GET /slow HTTP/1.1\r\nHost: k\r\n")
    assert status == 408
    assert "2 s" in document["message"]


# ---- identities that are not the caller's ----------------------------------------------------------------------------


def test_what_connection_names_is_gone_and_our_identity_is_not(
    world: TowerWorld, member: BackendMember, admin: Caller
) -> None:
    answer = admin.ask(
        "/named-in-connection",
        "Connection: close, Impersonate-User, Impersonate-Group, Authorization, X-Forwarded-For, X-Mine, Host",
        "X-Mine: gone",
        "X-Kept: kept",
    )
    assert answer.status == 200
    (seen,) = member.seen("named-in-connection")
    assert seen.values("impersonate-user") == [f"tower:{world.host}:admin"]
    assert seen.values("impersonate-group") == [f"tower:{world.host}:cluster-admins"]
    assert seen.values("x-forwarded-for") == ["127.0.0.1"]
    assert (seen.values("x-mine"), seen.values("x-kept"), len(seen.values("host"))) == ([], ["kept"], 1)


@pytest.mark.parametrize(
    "field",
    [
        "Impersonate-User: system:admin",
        "impersonate-group: system:masters",
        "Impersonate-Uid: 0",
        "Impersonate-Extra-a: b",
    ],
)
def test_a_certificate_caller_that_smuggles_an_identity_gets_403(
    world: TowerWorld, member: BackendMember, admin: Caller, agent_log: Path, field: str
) -> None:
    with moves(world, denied("TWR405"), cluster=EDGE), logs(agent_log, "request", "403", f"tower:{world.host}:admin"):
        answer = admin.ask("/smuggled-impersonation", field)
    document = json.loads(answer.body)
    assert (answer.status, document["reason"]) == (403, "Forbidden")
    assert "TWR405" in document["message"]
    assert member.seen("smuggled-impersonation") == []


def test_what_only_a_proxy_may_say_is_dropped(member: BackendMember, admin: Caller) -> None:
    fields = ["X-Remote-User: root", "X-Remote-Group: system:masters", "X-Remote-Extra-a: b", "X-Real-Ip: 10.0.0.1"]
    fields += ["X-Forwarded-For: 10.0.0.1", "X-Forwarded-Proto: http", "Audit-ID: mine", "Forwarded: for=10.0.0.1"]
    assert admin.ask("/as-a-proxy", *fields).status == 200
    (seen,) = member.seen("as-a-proxy")
    names = {name for name, _ in seen.headers}
    assert not {name for name in names if name.startswith("x-remote-")}
    assert names.isdisjoint({"x-real-ip", "forwarded", "x-forwarded-proto"})
    assert seen.values("x-forwarded-for") == ["127.0.0.1"]
    assert seen.values("audit-id") != ["mine"]


def test_an_identity_in_a_trailer_does_not_arrive(member: BackendMember, admin: Caller) -> None:
    body = b"3\r\nabc\r\n0\r\nImpersonate-User: system:admin\r\nX-Remote-User: root\r\n\r\n"
    with admin.connect() as connection:
        connection.send(connection.request("POST", "/trailer", "Transfer-Encoding: chunked", "Trailer: X-Sum") + body)
        assert connection.answer("POST").status == 200
        connection.send(connection.request("GET", "/after-the-trailer"))
        assert connection.answer().status == 200
    (seen,) = member.seen("/trailer")
    assert (seen.body, seen.certificate) == ("abc", AGENT)
    (after,) = member.seen("/after-the-trailer")
    assert after.values("x-remote-user") == []
