from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs import codec
from certs.errors import MessageError


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"x" * 101, "more than the 100 allowed"),
        (b"[1]", "not a JSON object"),
        (b'{"a":1,"a":2}', "stands twice"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":', "not JSON"),
        (b"\xff\xfe\xfd", "not JSON"),
    ],
)
def test_malformed_messages_are_refused_by_name(data: bytes, says: str) -> None:
    with pytest.raises(MessageError, match=says) as caught:
        codec.decode(data, limit=100, what="the offer")
    assert "the offer" in str(caught.value)


def test_nesting_cannot_exhaust_the_stack() -> None:
    with pytest.raises(MessageError, match=r"not JSON"):
        codec.decode(b'{"a":' + b"[" * 100_000, limit=200_000, what="the offer")


@pytest.mark.parametrize("value", [True, "1", None, -1, float("inf"), 1e300])
def test_a_time_is_a_number_that_a_certificate_can_say(value: object) -> None:
    with pytest.raises(MessageError, match=r"'at'|at"):
        codec.as_time(value, "the offer: 'at'")


def test_base64_is_strict_and_bounded() -> None:
    def field(value: object) -> bytes:
        return codec.binary({"k": value}, "k", limit=3, what="the offer")

    assert field("AAAA") == b"\0\0\0"
    for bad in ("AAA", "AA\nA", "****", "AAAAAAAA", "é===", 3, None, ""):
        with pytest.raises(MessageError, match=r"'k'"):
            field(bad)


def test_a_text_is_one_that_can_be_written_down() -> None:
    message = codec.decode(rb'{"a":"\ud83d\ude00","b":"x\ud800"}', limit=100, what="the offer")
    assert codec.text(message, "a", limit=9, what="the offer") == "\U0001f600"
    with pytest.raises(MessageError, match=r"the offer: 'b' holds half a character"):
        codec.text(message, "b", limit=9, what="the offer")


@given(st.binary(max_size=200))
def test_any_bytes_give_an_object_or_a_message_error(data: bytes) -> None:
    try:
        assert isinstance(codec.decode(data, limit=200, what="x"), dict)
    except MessageError:
        pass


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.booleans())))
def test_what_is_encoded_is_decoded(value: dict[str, object]) -> None:
    assert codec.decode(codec.encode(value), limit=1 << 20, what="x") == value
