"""Recognising a bearer token exactly as the apiserver does, and the caller's address."""

from __future__ import annotations

import pytest

from gateway.caller import forwarded_for, has_websocket_bearer, is_bearer, without_bearer

PREFIX = b"base64url.bearer.authorization.k8s.io."


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"Bearer x", True),
        (b"bEaReR x", True),
        (b"  Bearer x  ", True),
        (b"\xc2\xa0Bearer x", True),  # trimmed as Unicode space
        (b"Bearer x y z", True),
        (b"Bearer \xff", True),
        (b"", False),
        (b"Bearer", False),
        (b"Bearer ", False),
        (b"Bearer \xc2\xa0", False),
        (b"Bearer  x", False),
        (b"Bearer\tx", False),
        (b"Bearerx y", False),
        (b"Basic x", False),
        (b"Token x", False),
    ],
)
def test_bearer(value: bytes, expected: bool) -> None:
    assert is_bearer(value) is expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([PREFIX + b"eA, v5.channel.k8s.io"], True),
        ([b"v5.channel.k8s.io ,\t" + PREFIX + b"eHl6"], True),
        ([b"v5.channel.k8s.io", PREFIX + b"eA"], True),
        ([PREFIX + b"eA,"], True),  # the empty one counts as another there too
        ([PREFIX + b"eA"], False),
        ([PREFIX + b"eA, " + PREFIX + b"eA, a"], False),
        ([PREFIX + b", a"], False),
        ([PREFIX + b"e, a"], False),
        ([PREFIX + b"eA==, a"], False),
        ([PREFIX + b"e+A, a"], False),
        ([PREFIX + b"_w, a"], False),
        ([b"x" + PREFIX + b"eA, a"], False),
        ([PREFIX.upper() + b"eA, a"], False),
        ([], False),
    ],
)
def test_websocket_bearer(values: list[bytes], expected: bool) -> None:
    assert has_websocket_bearer(values) is expected


def test_a_stripped_protocol_list_keeps_the_others_in_order() -> None:
    assert without_bearer(b"a, " + PREFIX + b"eA,b") == b"a, b"
    assert without_bearer(PREFIX + b"eA") == b""


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7:5123", b"192.0.2.7"),
        ("192.0.2.7", b"192.0.2.7"),
        ("[2001:db8::1]:443", b"2001:db8::1"),
        ("2001:db8::1", b"2001:db8::1"),
        ("", b""),
        ("unix", b""),
        ("1.2.3.4\r\nX: y", b""),
        ("1.2.3.4, 5.6.7.8", b""),
        ("evil:1", b""),
        ("[fe80::1%eth0]:443", b"fe80::1"),
        ("[fe80::1%x\r\nImpersonate-User: root]:443", b"fe80::1"),  # Python takes any text for a zone
    ],
)
def test_only_an_address_goes_into_forwarded_for(address: str, expected: bytes) -> None:
    assert forwarded_for(address) == expected
