"""Lines in pieces, and what a line may be."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.kube.errors import Ask, Forbidden, Gone, Unreachable
from daemon.kube.resources import SECRETS
from daemon.kube.watch import Lines, decode

ASK = Ask("watch", SECRETS, "n")


@given(lines=st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"").strip() + b"x")), cuts=st.data())
def test_lines_are_the_same_wherever_the_pieces_end(lines: list[bytes], cuts: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    found: list[bytes] = []
    reader = Lines()
    while stream:
        size = cuts.draw(st.integers(1, len(stream)))
        found += reader.feed(stream[:size])
        stream = stream[size:]
    assert found == lines


def test_a_line_is_bounded_before_it_ends() -> None:
    lines = Lines(limit=10)
    assert lines.feed(b"123456789\n1234567890") == [b"123456789"]
    with pytest.raises(ValueError, match="more than 10 bytes"):
        lines.feed(b"1")


def test_blank_lines_are_none() -> None:
    assert Lines().feed(b"\n\r\n  \n") == []


def test_an_event_is_a_type_and_an_object() -> None:
    event = decode(ASK, "api:6443", b'{"type": "ADDED", "object": {"metadata": {"name": "a"}}}')
    assert (event.type, event.object) == ("ADDED", {"metadata": {"name": "a"}})


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"[]", b'{"type": "ADDED"}', b'{"type": 1, "object": {}}', b"\xff", b"[" * 9999]
)
def test_what_is_no_event_is_named_with_who_sent_it(line: bytes) -> None:
    with pytest.raises(Unreachable, match="api:6443 sent a line that is no event in answer to watch secrets in "):
        decode(ASK, "api:6443", line)


def test_an_error_event_is_raised_by_its_code() -> None:
    def error(code: object) -> bytes:
        return json.dumps({"type": "ERROR", "object": {"kind": "Status", "code": code, "message": "told"}}).encode()

    for code, kind in ((410, Gone), (403, Forbidden), (500, Unreachable), (None, Unreachable)):
        with pytest.raises(kind, match="told"):
            decode(ASK, "api:6443", error(code))
