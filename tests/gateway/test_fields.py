"""Which names may stand in trailers."""

from __future__ import annotations

import pytest

from gateway.fields import allowed_in_trailer, tokens


@pytest.mark.parametrize("name", [b"grpc-status", b"x-checksum", b"etag", b"server-timing"])
def test_allowed(name: bytes) -> None:
    assert allowed_in_trailer(name)


@pytest.mark.parametrize(
    "name",
    [
        b"authorization",
        b"impersonate-user",
        b"impersonate-extra-a",
        b"impersonate_user",
        b"x_remote-group",
        b"content_length",
        b"x-remote-user",
        b"x-forwarded-for",
        b"content-length",
        b"transfer-encoding",
        b"host",
        b"connection",
        b"upgrade",
        b"audit-id",
        b"trailer",
        b"cookie",
    ],
)
def test_forbidden(name: bytes) -> None:
    assert not allowed_in_trailer(name)


def test_tokens() -> None:
    assert tokens(b" A,, b\t,C ") == [b"a", b"b", b"c"]
