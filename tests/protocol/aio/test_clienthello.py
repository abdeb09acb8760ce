"""A server answers no hello that leads to a costly key exchange, and every one that clients in use send."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.aio.clienthello import ENTRIES, HELLO_BYTES, RECORDS, refusal
from tests.protocol.aio.hellos import groups, hello, shares, sized

FINITE_FIELD, TOO_LONG, MALFORMED = "finite field", "too long", "malformed"


def hello_of(context: ssl.SSLContext) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("curve", [None, "prime256v1", "secp384r1", "secp521r1"])
def test_what_python_offers_may_be_answered_and_not_before_it_is_whole(curve: str | None) -> None:
    context = ssl.create_default_context()
    if curve:
        context.set_ecdh_curve(curve)
    sent = hello_of(context)
    assert refusal(sent) == ""
    assert {refusal(sent[:end]) for end in range(len(sent))} == {None}


def test_one_without_extensions_and_one_without_groups_are_left_to_openssl() -> None:
    bare = b"\x01" + sized(3, b"\x03\x03" + bytes(32) + sized(1, b"") + sized(2, b"\xc0\x2f") + sized(1, b"\0"))
    assert refusal(b"\x16\x03\x01" + sized(2, bare)) == ""
    assert refusal(hello((0, b""))) == ""


@pytest.mark.parametrize(
    "sent",
    [
        hello(groups(0x0104, 29), shares(0x0104)),
        hello(groups(29, 0x0104), shares(29, 0x0104)),
        hello(groups(0x0100, 0x0101), shares()),
        hello(groups(0x0104)),
        hello(groups(0x0104), pieces=7),
    ],
    ids=["shown", "shown beside a curve", "only offered", "without a share", "in pieces"],
)
def test_what_leads_to_a_finite_field_is_refused(sent: bytes) -> None:
    assert FINITE_FIELD in (refusal(sent) or "")


def test_finite_fields_that_are_listed_behind_curves_do_no_harm() -> None:
    assert refusal(hello(groups(0x11EC, 29, 23, 0x0100), shares(0x11EC, 29))) == ""


@pytest.mark.parametrize("first", [b"\x15\x03\x01\0\x02\x01\x00", b"\x14\x03\x03\0\x01\x01"], ids=["alert", "ccs"])
def test_nothing_comes_before_the_hello(first: bytes) -> None:
    assert "does not begin with a ClientHello" in (refusal(first + hello(groups(0x0104))) or "")


@pytest.mark.parametrize(
    "sent",
    [
        hello(groups(0x0104), pieces=200)[:6] + b"\x15\x03\x01\0\x02\x01\0" + hello(groups(0x0104), pieces=200)[6:],
        hello(groups(29), pieces=RECORDS + 4),
        hello(*[(1000 + each, b"") for each in range(ENTRIES + 1)]),
        hello((10, b"\xff\xff\0\x1d")),
        hello((51, b"\0\x08\0\x1d\0\x20abcd")),
        b"\x16\x03\x01" + sized(2, b"\x01" + sized(3, b"\x03\x03" + bytes(32) + b"\xff")),
    ],
    ids=["alert in between", "many records", "many extensions", "groups cut", "share cut", "session id cut"],
)
def test_what_cannot_be_read_is_not_passed_on(sent: bytes) -> None:
    assert MALFORMED in (refusal(sent) or "")


def test_one_that_never_ends_is_refused() -> None:
    endless = b"".join(b"\x16\x03\x01" + sized(2, b"\x01\xff\xff\xff" + bytes(7000)) for _ in range(3))
    assert refusal(endless[:HELLO_BYTES]) is None
    assert TOO_LONG in (refusal(endless[: HELLO_BYTES + 1]) or "")


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x", bytes(100), hello()[:5] + b"\x02\0\0\0"])
def test_what_is_no_hello_is_left_to_openssl_which_says_so(sent: bytes) -> None:
    assert refusal(sent) == ""


@given(st.binary(max_size=400), st.booleans())
@settings(max_examples=300)
def test_garbage_gets_a_verdict(garbage: bytes, framed: bool) -> None:
    refusal(b"\x16\x03\x01" + sized(2, b"\x01" + sized(3, garbage)) if framed else garbage)


@given(st.data())
@settings(max_examples=100)
def test_no_place_of_the_cut_changes_the_verdict(data: st.DataObject) -> None:
    listed = data.draw(st.lists(st.sampled_from([23, 29, 0x0104, 0x0A0A, 0x11EC]), min_size=1, max_size=5))
    shown = data.draw(st.lists(st.sampled_from(listed), max_size=3))
    sent = hello(groups(*listed), shares(*shown), pieces=data.draw(st.integers(1, RECORDS - 1)))
    assert bool(refusal(sent)) == (0x0104 in shown or not {23, 29} & set(listed))
