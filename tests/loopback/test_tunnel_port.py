"""What reaches the tunnel port and is no good agent: a clear refusal, counted, logged, and felt by nobody else.

How a session answers each broken rule is held by the tests of the protocol; here a whole server is attacked while two
real agents serve beside it.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from certs.ca import Authority
from certs.identity import StoredIdentity
from certs.keys import generate_key, key_to_pem
from protocol.constants import Code, FrameType
from protocol.defaults import MAX_CONTROL_LINE_BYTES, MAX_FRAME_PAYLOAD
from protocol.frames import U64, decode_open, encode
from protocol.handshake import Welcome
from tests.lab.processes import wait_until
from tests.lab.world import TowerWorld
from tests.loopback import forgery
from tests.loopback.callers import Caller, ended, logs, metrics, moves, tunnels
from tests.loopback.conftest import DEADLINES, EDGE, OTHER
from tests.loopback.hostile import BROKEN, OPENED, Hostile, admitted, handshake_of, linked, outer, rejected

pytestmark = [pytest.mark.usefixtures("bystanders"), pytest.mark.slow]


@pytest.fixture(scope="module")
def identity(world: TowerWorld) -> StoredIdentity:
    """That of the real agent of the other cluster, stolen."""
    return forgery.identity_of(world, OTHER)


def result(name: str) -> str:
    return f'tower_handshakes_total{{result="{name}"}}'


@pytest.fixture
def raw(world: TowerWorld, identity: StoredIdentity) -> Iterator[Callable[[], ssl.SSLSocket]]:
    """TLS connections to the tunnel port."""
    made: list[ssl.SSLSocket] = []

    def connect() -> ssl.SSLSocket:
        bare = socket.create_connection(("127.0.0.1", world.tunnel_port), timeout=10.0)
        made.append(outer(identity.bundle).wrap_socket(bare, server_hostname="127.0.0.1"))
        return made[-1]

    yield connect
    for each in made:
        each.close()


# ---- before there is an agent ----------------------------------------------------------------------------------------

UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
SPOKEN = "Sec-WebSocket-Protocol: tower.v1\r\n"
REQUESTS = {
    "no-subprotocol": (f"GET /v1/tunnel HTTP/1.1\r\nHost: t\r\n{UPGRADE}{KEY}", 400, "tower.v1"),
    "another-path": (f"GET /v1/elsewhere HTTP/1.1\r\nHost: t\r\n{UPGRADE}{KEY}", 404, "/v1/tunnel"),
    "no-upgrade": ("GET /v1/tunnel HTTP/1.1\r\nHost: t\r\n", 426, ""),
    "a-browser": (f"GET /v1/tunnel HTTP/1.1\r\nHost: t\r\nOrigin: https://evil\r\n{UPGRADE}{KEY}{SPOKEN}", 403, ""),
    "a-huge-head": (f"GET /v1/tunnel HTTP/1.1\r\nHost: t\r\nX: {'x' * (1 << 20)}\r\n", 431, "16384"),
    "malformed": ("GET /v1/tunnel HTTP/9.9\r\nHost: t\r\n", 400, "malformed"),
    "a-bare-lf": ("GET /v1/tunnel HTTP/1.1\nHost: t\nTransfer-Encoding : chunked\n", 400, "malformed"),
    "two-lengths": ("POST /v1/enrolment HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\nContent-Length: 4\r\n", 400, ""),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_what_is_no_agents_request_gets_an_answer_that_says_why(
    world: TowerWorld, raw: Callable[[], ssl.SSLSocket], name: str
) -> None:
    request, status, says = REQUESTS[name]
    with moves(world, result("protocol")), logs(world.server.log, "tunnel-port-refused", "127.0.0.1"):
        tls = raw()
        try:
            tls.sendall(f"{request}\r\n".encode())
        except OSError:
            assert name == "a-huge-head"  # refused before all of it was read
        answer = http.client.HTTPResponse(tls)
        answer.begin()
        text = answer.read().decode()
    assert (answer.status, says in text) == (status, True), text


def test_another_subprotocol_is_refused_by_name(world: TowerWorld, identity: StoredIdentity) -> None:
    with (
        moves(world, result("protocol")),
        pytest.raises(InvalidStatus) as refused,
        linked(world, identity.bundle, subprotocol="tower.v9"),
    ):
        pass
    assert refused.value.response.status_code == 400
    assert b"tower.v1" in refused.value.response.body


def test_plain_bytes_and_half_a_hello_on_the_tls_port_end(world: TowerWorld) -> None:
    for data in (b"GET / HTTP/1.1\r\nHost: t\r\n\r\n", bytes(range(256)), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"):
        with socket.create_connection(("127.0.0.1", world.tunnel_port), timeout=10.0) as bare:
            bare.sendall(data)
            ended(bare)


def test_a_link_that_says_nothing_is_dropped_at_the_deadline(world: TowerWorld, identity: StoredIdentity) -> None:
    with moves(world, result("timeout")), linked(world, identity.bundle) as link:
        kind, _, payload = link.frame()
    assert kind == FrameType.REJECT
    assert f"{DEADLINES['HANDSHAKE_DEADLINE']:g} s" in payload.decode()


# ---- agents that are not who they say --------------------------------------------------------------------------------


def test_an_identity_of_another_cluster_is_refused(world: TowerWorld, identity: StoredIdentity) -> None:
    with (
        moves(world, result("wrong_cluster")),
        logs(world.server.log, "tunnel-port-refused", "WRONG_CLUSTER", OTHER, EDGE),
        linked(world, identity.bundle) as link,
    ):
        error = rejected(link, handshake_of(identity, cluster=EDGE))
    assert error.code is Code.WRONG_CLUSTER
    assert OTHER in error.text
    assert EDGE in error.text


def test_a_stolen_certificate_without_its_key_is_refused(world: TowerWorld, identity: StoredIdentity) -> None:
    with moves(world, result("bad_signature")), linked(world, identity.bundle) as link:
        error = rejected(link, handshake_of(identity, key=generate_key()))
    assert error.code is Code.BAD_SIGNATURE


def test_an_identity_of_a_foreign_authority_of_the_same_name_is_refused(
    world: TowerWorld, identity: StoredIdentity
) -> None:
    key = generate_key()
    stranger = Authority.create(world.host, at=time.time())
    issued = stranger.issue_agent(identity.cluster, identity.agent, public_key=key.public_key(), at=time.time())
    forged = replace(identity, chain_pem=issued.chain_pem, key_pem=key_to_pem(key))
    with moves(world, result("untrusted")), linked(world, identity.bundle) as link:
        error = rejected(link, handshake_of(forged))
    assert error.code is Code.UNTRUSTED


def test_a_handshake_cannot_be_replayed(world: TowerWorld, identity: StoredIdentity) -> None:
    sent: list[bytes] = []
    with linked(world, identity.bundle) as link:
        keep = link.socket.send

        def noted(data: bytes) -> None:
            sent.append(data)
            keep(data)

        link.send = noted  # type: ignore[method-assign]
        admitted(link, handshake_of(identity))
    with (
        moves(world, result("bad_signature")),
        logs(world.server.log, "tunnel-port-refused", "BAD_SIGNATURE"),
        linked(world, identity.bundle) as again,
    ):
        again.send(sent[0])
        assert again.frame()[0] == FrameType.CHALLENGE
        again.send(sent[1])
        kind, _, payload = again.frame()
    assert kind == FrameType.REJECT
    assert f'"code":{int(Code.BAD_SIGNATURE)}' in payload.decode()


# ---- agents that are, and break the rules ----------------------------------------------------------------------------


@contextlib.contextmanager
def closed_for(world: TowerWorld, identity: StoredIdentity, cause: str) -> Iterator[tuple[Hostile, Welcome]]:
    """An agent's tunnel, which the server closes for that `cause`: counted, logged."""
    with (
        moves(world, f'tower_tunnel_closes_total{{cause="{cause}",member_cluster="{OTHER}"}}'),
        logs(world.server.log, "tunnel-closed", OTHER, cause),
        linked(world, identity.bundle) as link,
    ):
        yield link, admitted(link, handshake_of(identity))


@pytest.mark.parametrize("name", BROKEN)
def test_an_agent_that_breaks_a_rule_loses_its_own_tunnel_only(
    world: TowerWorld, identity: StoredIdentity, name: str
) -> None:
    frames, code = BROKEN[name]
    with closed_for(world, identity, code.name) as (link, welcome):
        _, stream, _ = next(frame for frame in iter(link.frame, None) if frame[0] == FrameType.OPEN)
        link.send(encode(FrameType.OPEN_OK, stream, OPENED) + frames)
        assert link.closed() is code
    assert welcome.tunnel not in tunnels(world, OTHER)


def test_a_control_message_without_end_loses_its_own_tunnel_only(world: TowerWorld, identity: StoredIdentity) -> None:
    with closed_for(world, identity, Code.TOO_LARGE.name) as (link, welcome):
        _, stream, payload = next(frame for frame in iter(link.frame, None) if frame[0] == FrameType.OPEN)
        link.send(encode(FrameType.OPEN_OK, stream, OPENED))
        sent, granted = 0, decode_open(memoryview(payload)).grant
        while sent <= MAX_CONTROL_LINE_BYTES:  # no faster than it may: that would be another fault
            if size := min(MAX_FRAME_PAYLOAD, granted - sent):
                link.send(encode(FrameType.DATA, stream, b"x" * size))
                sent += size
            elif (frame := link.frame())[:2] == (FrameType.CREDIT, stream):
                (granted,) = U64.unpack(frame[2])
        assert link.closed() is Code.TOO_LARGE
    assert welcome.tunnel not in tunnels(world, OTHER)


def test_an_agent_that_sends_more_than_its_credit_loses_its_own_tunnel_only(
    world: TowerWorld, identity: StoredIdentity, neighbour: Caller
) -> None:
    """To a caller that reads nothing, so that no more is granted."""
    with closed_for(world, identity, "FLOW") as (link, _), neighbour.plain() as caller:
        here = "{}:{}".format(*caller.getsockname()).encode()
        # the tunnel with the fewest streams gets the next, which is ours
        opened = (frame for frame in iter(link.frame, None) if frame[0] == FrameType.OPEN)
        stream = next(stream for _, stream, payload in opened if here in payload)
        link.send(encode(FrameType.OPEN_OK, stream, OPENED))
        with contextlib.suppress(ConnectionClosed):  # before all of it was read
            for _ in range(64):
                link.send(encode(FrameType.DATA, stream, bytes(1 << 16)) * 16)


def test_a_frame_that_is_cut_short_ends_with_its_link(world: TowerWorld, identity: StoredIdentity) -> None:
    with logs(world.server.log, "tunnel-closed", OTHER), linked(world, identity.bundle) as link:
        welcome = admitted(link, handshake_of(identity))
        link.send(encode(FrameType.DATA, 1, b"x" * 100)[:50])
    wait_until(lambda: welcome.tunnel not in tunnels(world, OTHER), "the end of its tunnel", 30.0)


def test_four_hundred_thousand_opens_cost_the_server_nothing(world: TowerWorld, identity: StoredIdentity) -> None:
    before = metrics(world)["process_resident_memory_bytes"]
    with closed_for(world, identity, "FLOOD") as (link, _):
        one = bytes(8) + b"\x0akubernetes" + b"\x01c" + b"\x01i"
        link.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)  # nobody reads the answers
        with contextlib.suppress(ConnectionClosed):  # cut off as a flood
            for first in range(2, 800_002, 2000):
                link.send(b"".join(encode(FrameType.OPEN, stream, one) for stream in range(first, first + 2000, 2)))
    assert metrics(world)["process_resident_memory_bytes"] < before + 16 * 1024 * 1024
