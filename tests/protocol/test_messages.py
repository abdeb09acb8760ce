"""Lines on the control stream: found however they are cut, bounded, refused when they are none."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.constants import Code
from protocol.defaults import MAX_CONTROL_LINE_BYTES, MAX_REVOCATION_BYTES
from protocol.errors import RemoteProtocolError
from protocol.messages import MessageReader, encode_message
from tests.lab.examples import examples

values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v, max_size=3))
bodies = st.dictionaries(st.text(min_size=1).filter(lambda key: key not in ("type", "kind")), values, max_size=3)


@examples(40)
@given(said=st.lists(st.tuples(st.text(min_size=1), bodies), max_size=4), step=st.integers(1, 50))
def test_messages_arrive_however_they_are_cut(said, step) -> None:
    raw = b"".join(encode_message(kind, **fields) for kind, fields in said)
    reader, got = MessageReader(), []
    for at in range(0, len(raw), step):
        got += reader.feed(memoryview(raw)[at : at + step])
    assert got == [{"type": kind, **fields} for kind, fields in said]


def test_empty_lines_are_nothing() -> None:
    assert MessageReader().feed(b'\n\n{"type":"status"}\n\n') == [{"type": "status"}]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"nonsense", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not an object with a type"),
        (b"{}", "not an object with a type"),
        (b'{"type": 1}', "not an object with a type"),
    ],
)
def test_a_line_that_is_no_message_is_refused(line: bytes, says: str) -> None:
    with pytest.raises(RemoteProtocolError, match=says) as refused:
        MessageReader().feed(line + b"\n")
    assert refused.value.code is Code.PROTOCOL


def test_a_line_above_the_bound_is_refused_before_it_ends() -> None:
    reader = MessageReader()
    reader.feed(bytes(b"x" * MAX_CONTROL_LINE_BYTES))
    with pytest.raises(RemoteProtocolError, match="above 262144 bytes") as refused:
        reader.feed(b"x")
    assert refused.value.code is Code.TOO_LARGE


def test_a_line_that_comes_byte_by_byte_costs_each_byte_once() -> None:
    """A line that was looked at anew for each byte took a server seconds: nobody else's turn came meanwhile."""
    reader, began = MessageReader(), time.process_time()
    for _ in range(MAX_CONTROL_LINE_BYTES // 2):
        reader.feed(b"x")
    assert time.process_time() - began < 2.5


def test_a_line_that_every_receiver_would_refuse_is_not_sent() -> None:
    with pytest.raises(ValueError, match="'revocations' of 262"):
        encode_message("revocations", list="x" * MAX_CONTROL_LINE_BYTES)


def test_the_largest_revocation_list_fits_a_line() -> None:
    encoded = "x" * (4 * -(-MAX_REVOCATION_BYTES // 3))
    line = encode_message("revocations", list=encoded)
    assert MessageReader().feed(line) == [{"type": "revocations", "list": encoded}]
