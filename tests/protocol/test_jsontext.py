"""JSON that somebody else wrote: one kind of failure, whatever is wrong with it."""

import pytest

from protocol.jsontext import parse_json, parse_object

BROKEN = [b"", b"{", b'{"a": 1', b"<html>", b"\xff\xfe", b"9" * 5000, b"[" * 100_000, b'{"a":' * 100_000]


@pytest.mark.parametrize("data", BROKEN, ids=lambda data: repr(data[:8]))
def test_what_is_no_json_is_a_value_error_that_says_so(data):
    with pytest.raises(ValueError, match=r"."):
        parse_json(data)
    with pytest.raises(ValueError, match=r"^not JSON$"):
        parse_object(data)


def test_nesting_that_exhausts_the_stack_is_named():
    with pytest.raises(ValueError, match=r"^nested too deeply$"):
        parse_json("[" * 100_000)


@pytest.mark.parametrize("data", [b"[]", b"null", b'"x"', b"1", "true"])
def test_another_value_is_no_object(data):
    parse_json(data)
    with pytest.raises(ValueError, match=r"^not a JSON object$"):
        parse_object(data)


def test_an_object_is_read_from_bytes_and_from_text():
    assert parse_object(b'{"a": [1]}') == parse_object('{"a": [1]}') == parse_json('{"a": [1]}') == {"a": [1]}
