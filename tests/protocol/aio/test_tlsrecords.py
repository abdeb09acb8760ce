"""Records are counted however they come, and few may hold nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.aio.tlsrecords import PIECE_RECORDS, SPARE_RECORDS, SPARE_SHARE, RecordCounter

LENGTHS = st.lists(st.integers(1, 70), max_size=40)


def records(*lengths: int) -> bytes:
    return b"".join(b"\x17\x03\x03" + length.to_bytes(2, "big") + bytes(length) for length in lengths)


@given(LENGTHS, st.lists(st.integers(1, 90), min_size=1), st.lists(st.integers(1, 90), min_size=1))
def test_they_are_counted_the_same_wherever_they_are_split(
    lengths: list[int], cuts: list[int], most: list[int]
) -> None:
    sent, counter, at, turn = records(*lengths), RecordCounter(), 0, 0
    while at < len(sent):
        rest = memoryview(sent)[at : at + cuts[turn % len(cuts)]]
        at += len(rest)
        while rest and not counter.only(rest):
            size = counter.piece(rest, most[turn % len(most)])
            assert 0 < size <= min(len(rest), most[turn % len(most)])
            rest, turn = rest[size:], turn + 1
    assert counter.begun == len(lengths)


def test_a_piece_holds_a_bounded_number_of_them() -> None:
    counter, sent = RecordCounter(), memoryview(records(*[22] * (2 * PIECE_RECORDS + 1)))
    for begun in (PIECE_RECORDS, 2 * PIECE_RECORDS, 2 * PIECE_RECORDS + 1):
        sent = sent[counter.piece(sent, len(sent)) :]
        assert counter.begun == begun
    assert not sent


@pytest.mark.parametrize("filled", [0, 10 * SPARE_SHARE])
def test_few_of_them_may_hold_nothing(filled: int) -> None:
    counter, spare = RecordCounter(), SPARE_RECORDS + filled // SPARE_SHARE
    sent = memoryview(records(*[22] * (filled + spare)))
    while sent:
        sent = sent[counter.piece(sent, len(sent)) :]
    assert not counter.wasteful(filled, 0)
    counter.piece(memoryview(records(22)), 27)
    assert counter.wasteful(filled, 0)
    assert not counter.wasteful(filled, 27), "it may be the one that is still to be decrypted"
