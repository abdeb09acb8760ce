"""Frames: written as documented, found again however the bytes are cut, refused above every limit."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.constants import HEADER, HEADER_SIZE, Code, FrameType
from protocol.defaults import MAX_FRAME_PAYLOAD
from protocol.errors import RemoteProtocolError
from protocol.frames import (
    MAX_NAME_BYTES,
    MAX_TEXT_BYTES,
    FrameDecoder,
    Open,
    cut,
    decode_code,
    decode_open,
    decode_reason,
    decode_u64,
    encode,
    encode_open,
    encode_reason,
    printable,
)
from tests.lab.examples import examples


def found(decoder: FrameDecoder, *pieces: bytes) -> list[tuple[int, int, int, bytes]]:
    return [
        (kind, flags, stream, bytes(payload))
        for piece in pieces
        for kind, flags, stream, payload in decoder.feed(memoryview(piece))
    ]


frames = st.lists(
    st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=40)),
    max_size=6,
)


@examples(40)
@given(frames=frames, cuts=st.lists(st.integers(0, 400), max_size=8))
def test_frames_are_found_however_the_bytes_are_cut(frames, cuts) -> None:
    raw = b"".join(HEADER.pack(k, f, 0, s, len(p)) + p for k, f, s, p in frames)
    places = sorted({min(place, len(raw)) for place in cuts} | {0, len(raw)})
    decoder = FrameDecoder()
    pieces = [raw[a:b] for a, b in pairwise(places)]
    assert found(decoder, *pieces) == frames
    assert decoder.buffered == 0


@examples(40)
@given(frames=frames.filter(bool), first=st.integers(0, 300))
def test_taken_says_where_the_frame_ended(frames, first) -> None:
    raw = b"".join(HEADER.pack(k, f, 0, s, len(p)) + p for k, f, s, p in frames)
    first = min(first, len(raw))
    decoder, base, ends = FrameDecoder(), 0, []
    for piece in (raw[:first], raw[first:]):
        ends += [base + decoder.taken for _ in decoder.feed(memoryview(piece))]
        base += len(piece)
    sizes = [HEADER_SIZE + len(payload) for *_, payload in frames]
    assert ends == [sum(sizes[: i + 1]) for i in range(len(sizes))]


def test_a_length_above_the_limit_is_refused_on_the_header_alone() -> None:
    header = HEADER.pack(FrameType.DATA, 0, 0, 1, MAX_FRAME_PAYLOAD + 1)
    for pieces in ((header,), (header[:5], header[5:])):
        decoder = FrameDecoder()
        with pytest.raises(RemoteProtocolError, match=r"65537 bytes, at most 65536") as refused:
            found(decoder, *pieces)
        assert refused.value.code is Code.TOO_LARGE
        assert decoder.buffered <= HEADER_SIZE, "nothing of the payload may be kept"


def test_the_largest_length_allocates_nothing() -> None:
    decoder = FrameDecoder()
    with pytest.raises(RemoteProtocolError) as refused:
        found(decoder, HEADER.pack(FrameType.DATA, 0, 0, 1, 2**32 - 1))
    assert refused.value.code is Code.TOO_LARGE


def test_a_frame_of_exactly_the_limit_passes() -> None:
    frame = encode(FrameType.DATA, 1, bytes(MAX_FRAME_PAYLOAD))
    assert len(found(FrameDecoder(), frame)[0][3]) == MAX_FRAME_PAYLOAD


@pytest.mark.parametrize("at", [2, 3])
def test_reserved_bits_are_refused(at: int) -> None:
    frame = bytearray(encode(FrameType.PING, 0, bytes(8)))
    frame[at] = 1
    with pytest.raises(RemoteProtocolError, match="reserved bits") as refused:
        found(FrameDecoder(), bytes(frame))
    assert refused.value.code is Code.PROTOCOL


def test_an_incomplete_frame_is_all_that_is_kept() -> None:
    decoder = FrameDecoder()
    whole = encode(FrameType.DATA, 1, b"x" * 1000)
    assert found(decoder, whole + whole[:100]) == [(FrameType.DATA, 0, 1, b"x" * 1000)]
    assert decoder.buffered == 100


names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=60)


@given(grant=st.integers(0, 2**64 - 1), service=names, caller=names, connection=names)
def test_open_says_what_was_said(grant, service, caller, connection) -> None:
    body = Open(grant, service, caller, connection)
    ((kind, _, stream, payload),) = found(FrameDecoder(), encode_open(7, body))
    assert (kind, stream) == (FrameType.OPEN, 7)
    assert decode_open(memoryview(payload)) == body


@given(st.binary(max_size=60))
def test_any_bytes_as_an_open_are_read_or_refused(raw: bytes) -> None:
    try:
        body = decode_open(memoryview(raw))
    except RemoteProtocolError:
        return
    assert encode_open(1, body)[HEADER_SIZE:] == raw


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "cut short"),
        (bytes(8) + b"\x02a", "cut short"),
        (bytes(8) + b"\x01\xff\0\0", "not UTF-8"),
        (bytes(8) + b"\0\0\0x", "1 bytes too many"),
        (bytes(8) + b"\x02a\n\0\0", "control characters"),
        (bytes(8) + b"\x02\xc2\x9b\0\0", "control characters"),
    ],
)
def test_a_malformed_open_is_refused(payload: bytes, says: str) -> None:
    with pytest.raises(RemoteProtocolError, match=says) as refused:
        decode_open(memoryview(payload))
    assert refused.value.code is Code.PROTOCOL


@pytest.mark.parametrize("name", ["x" * (MAX_NAME_BYTES + 1), "a\nb", "a\x7fb", "\ud800"])
def test_a_name_that_the_peer_would_close_the_tunnel_for_is_not_sent(name: str) -> None:
    with pytest.raises(ValueError, match=r"in OPEN|surrogates"):
        encode_open(1, Open(0, "kubernetes", name, ""))


def test_a_reason_is_cut_at_a_character() -> None:
    text = "ü" * MAX_TEXT_BYTES
    assert len(cut(text)) == MAX_TEXT_BYTES
    assert cut("x" + text) == ("x" + "ü" * (MAX_TEXT_BYTES // 2 - 1)).encode() + b""
    ((_, _, _, payload),) = found(FrameDecoder(), encode_reason(FrameType.RST, 1, Code.BUDGET, text))
    assert decode_reason(memoryview(payload)) == (Code.BUDGET, "ü" * (MAX_TEXT_BYTES // 2))


@pytest.mark.parametrize("size", [0, 3, 4 + MAX_TEXT_BYTES + 1])
def test_a_reason_of_a_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"a reason of {size} bytes"):
        decode_reason(memoryview(bytes(size)))


def test_a_reason_cannot_steer_a_terminal() -> None:
    raw = (16).to_bytes(4, "big") + b"\x1b[2Jgone\r\n\xff"
    assert decode_reason(memoryview(raw)) == (Code.UNKNOWN_SERVICE, "?[2Jgone??\ufffd")
    assert printable("as it is") == "as it is"


def test_an_unknown_code_reads_as_internal() -> None:
    assert decode_code(9999) is Code.INTERNAL


@pytest.mark.parametrize("size", [0, 7, 9])
def test_a_number_of_a_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"CREDIT of {size} bytes, expected 8"):
        decode_u64(memoryview(bytes(size)), "CREDIT")
