"""The client's half of the upgrade: what it asks for, which answers it takes, and what it says of the others."""

from __future__ import annotations

import base64
import hashlib

import pytest

from protocol.aio.hops import DialError
from protocol.aio.proxydial import DialTarget
from protocol.aio.upgrade import ClientUpgrade

TARGET = DialTarget(host="tower.test", port=8080, path="/some/path", ssl_context=None)
SUBPROTOCOL = "kubesphere-v1"


def asked(*, echoed: bool = True) -> tuple[ClientUpgrade, bytes]:
    """An upgrade whose request has been made, and a server's good answer to it without a subprotocol."""
    upgrade = ClientUpgrade(TARGET, SUBPROTOCOL, echoed=echoed)
    request = upgrade.request().decode()
    assert request.startswith("GET /some/path HTTP/1.1\r\n")
    headers = dict(line.split(": ", 1) for line in request.split("\r\n")[1:] if line)
    assert headers["Host"] == "tower.test:8080"
    assert headers["Sec-WebSocket-Protocol"] == SUBPROTOCOL
    assert "Sec-WebSocket-Extensions" not in headers
    secret = headers["Sec-WebSocket-Key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    proof = base64.b64encode(hashlib.sha1(secret).digest())
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    return upgrade, head + b"Sec-WebSocket-Accept: " + proof + b"\r\n"


def test_a_good_answer_in_single_bytes_gives_what_follows_it() -> None:
    upgrade, head = asked()
    whole = head + b"Sec-WebSocket-Protocol: kubesphere-v1\r\n\r\n"
    for at in range(len(whole) - 1):
        assert upgrade.receive(whole[at : at + 1]) is None
    assert upgrade.receive(whole[-1:] + b"more") == b"more"


@pytest.mark.parametrize("echoed", [True, False])
def test_an_answer_without_the_subprotocol_is_taken_only_where_it_need_not_come_back(echoed: bool) -> None:
    upgrade, head = asked(echoed=echoed)
    if echoed:
        with pytest.raises(DialError, match="subprotocol: the server did not agree to kubesphere-v1"):
            upgrade.receive(head + b"\r\n")
    else:
        assert upgrade.receive(head + b"\r\n") == b""


@pytest.mark.parametrize("echoed", [True, False])
def test_another_subprotocol_is_never_taken(echoed: bool) -> None:
    upgrade, head = asked(echoed=echoed)
    with pytest.raises(DialError) as caught:
        upgrade.receive(head + b"Sec-WebSocket-Protocol: tower.v1\r\n\r\n")
    assert caught.value.hop == "subprotocol"


def test_another_status_is_told_with_what_the_server_says_and_when_to_come_back() -> None:
    upgrade, _ = asked()
    assert upgrade.receive(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 9\r\n\r\nlat") is None
    assert upgrade.receive(b"er on") is None
    with pytest.raises(DialError) as caught:
        upgrade.receive(b".")
    assert (caught.value.code, caught.value.retry_after) == (503, 7.0)
    assert caught.value.text == "the server answered 503 Busy to the upgrade: later on."


def test_a_body_without_a_length_is_told_at_its_first_bytes_and_one_that_is_cut_at_its_end() -> None:
    upgrade, _ = asked()
    with pytest.raises(DialError, match="the server answered 404 Not Found to the upgrade: Not Found"):
        upgrade.receive(b"HTTP/1.1 404 Not Found\r\n\r\nNot Found")
    upgrade, _ = asked()
    assert upgrade.receive(b"HTTP/1.1 404 Not Found\r\nContent-Length: 99\r\n\r\nNot") is None
    with pytest.raises(DialError, match="404 Not Found to the upgrade: Not"):
        upgrade.ended()


def test_an_answer_that_ends_behind_or_in_its_head_is_evidence_too() -> None:
    upgrade, _ = asked()
    upgrade.ended()
    assert upgrade.receive(b"HTTP/1.1 403\r\nServer: waf\r\nContent-Length: 99\r\n\r\n") is None
    with pytest.raises(DialError) as caught:
        upgrade.ended()
    assert (caught.value.text, caught.value.code) == ("the server answered 403 to the upgrade (Server: waf)", 403)
    upgrade, _ = asked()
    assert upgrade.receive(b"HTTP/1.1 503 Busy\nServer: old\n\n") is None
    with pytest.raises(DialError, match="ends within its head: b'HTTP"):
        upgrade.ended()


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 101 Fine\r\n\r\n", b"HTTP/1.1 " + b"x" * 70_000])
def test_what_is_no_upgrade_is_refused_at_once(said: bytes) -> None:
    upgrade, _ = asked()
    with pytest.raises(DialError) as caught:
        upgrade.receive(said)
    assert caught.value.hop == "http"


def test_further_fields_go_into_the_request() -> None:
    upgrade = ClientUpgrade(TARGET, SUBPROTOCOL, headers={"Tower-Resume": "t1"})
    assert b"\r\nTower-Resume: t1\r\n" in upgrade.request()
