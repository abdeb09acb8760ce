"""WebSocket frames against the websockets library, both ways and cut anywhere, and every rule of RFC 6455 that a peer
can break."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side, State
from websockets.speedups import apply_mask

from protocol.aio.wsframes import MAX_MESSAGE_FRAME, NO_MASK, Op, WebSocketDecoder, WebSocketError, frame, header
from tests.lab.examples import examples

Said = list[tuple[Op, bytes]]


def read(decoder: WebSocketDecoder, piece: bytes) -> Iterator[tuple[Op, memoryview]]:
    """As a link reads."""
    whole = decoder.whole(memoryview(piece))
    if whole is None:
        yield from decoder.feed(memoryview(piece))
    else:
        yield Op.BINARY, whole


def found(decoder: WebSocketDecoder, *pieces: bytes) -> Said:
    """What the decoder yields, neighbouring pieces of data joined."""
    said: Said = []
    for piece in pieces:
        for op, payload in read(decoder, piece):
            if op is Op.BINARY and said and said[-1][0] is Op.BINARY:
                said[-1] = (op, said[-1][1] + bytes(payload))
            else:
                said.append((op, bytes(payload)))
    return [(op, payload) for op, payload in said if op is not Op.BINARY or payload]


def joined(said: Said) -> Said:
    merged: Said = []
    for op, payload in said:
        if op is Op.BINARY and merged and merged[-1][0] is Op.BINARY:
            merged[-1] = (op, merged[-1][1] + payload)
        elif op is not Op.BINARY or payload:
            merged.append((op, payload))
    return merged


def pieces(raw: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(raw)) for cut in cuts} | {0, len(raw)})
    return [raw[a:b] for a, b in pairwise(places)]


sizes = st.sampled_from([0, 1, 3, 125, 126, 127, 1000, 65535, 65536, 70000])
messages = st.lists(
    st.one_of(
        st.tuples(st.just("data"), st.lists(sizes, min_size=1, max_size=3)),
        st.tuples(st.sampled_from(["ping", "pong"]), st.sampled_from([0, 1, 125])),
    ),
    max_size=5,
)
cuts = st.lists(st.integers(0, 200_000), max_size=12)


@examples(40)
@given(messages=messages, cuts=cuts, masked=st.booleans())
def test_what_the_library_writes_is_read(messages, cuts, masked) -> None:
    peer = Protocol(Side.CLIENT if masked else Side.SERVER, state=State.OPEN)
    expected: Said = []
    for kind, size in messages:
        if kind == "data":
            for n, part in enumerate(size):
                payload = bytes((n + i) % 251 for i in range(part))
                final = n == len(size) - 1
                if n == 0:
                    peer.send_binary(payload, fin=final)
                else:
                    peer.send_continuation(payload, fin=final)
                if not final:
                    peer.send_ping(b"between")  # control frames may stand between the parts of a message
                expected.append((Op.BINARY, payload))
                if not final:
                    expected.append((Op.PING, b"between"))
        else:
            getattr(peer, f"send_{kind}")(bytes(size))
            expected.append((Op.PING if kind == "ping" else Op.PONG, bytes(size)))
    raw = b"".join(peer.data_to_send())
    got = found(WebSocketDecoder(expect_mask=masked), *pieces(raw, cuts))
    assert joined(got) == joined(expected)


fragmented = st.lists(st.lists(st.sampled_from([0, 1, 125, 126, 1010, 1024]), min_size=1, max_size=12), max_size=6)


@given(parts=fragmented, cuts=st.lists(st.integers(0, 60_000), max_size=12))
def test_messages_in_many_small_fragments_are_read_as_go_clients_send_them(parts, cuts) -> None:
    peer, expected = Protocol(Side.CLIENT, state=State.OPEN), b""
    for message in parts:
        for n, size in enumerate(message):
            payload = bytes((len(expected) + i) % 251 for i in range(size))
            send = peer.send_continuation if n else peer.send_binary
            send(payload, fin=n == len(message) - 1)
            expected += payload
    got = found(WebSocketDecoder(expect_mask=True), *pieces(b"".join(peer.data_to_send()), cuts))
    assert b"".join(payload for _, payload in got) == expected


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (b"\x82\xfe\x04\x00", 1002),  # another message inside this one
        (b"\x81\xfe\x04\x00", 1003),  # text
        (b"\x40\xfe\x04\x00", 1002),  # a reserved bit
        (b"\x00\x7e\x04\x00", 1002),  # no mask
    ],
)
def test_a_rule_broken_among_fragments_is_found(last: bytes, code: int) -> None:
    run = b"\x02\xfe\x04\x00KEY1" + bytes(1024) + b"\x00\xfe\x04\x00KEY2" + bytes(1024)
    with pytest.raises(WebSocketError) as caught:
        found(WebSocketDecoder(expect_mask=True), run + last + b"KEY3" + bytes(1024))
    assert caught.value.code == code


@pytest.mark.parametrize("mask", [None, NO_MASK])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 125, 126, 127, 1000, 65535])
def test_a_whole_message_in_a_read_of_its_own_is_taken_at_once_and_nothing_else_is(
    size: int, mask: bytes | None
) -> None:
    masked = mask is not None
    decoder, payload = WebSocketDecoder(expect_mask=masked), bytes(i % 251 for i in range(size))
    raw = header(Op.BINARY, size, mask) + payload
    whole = decoder.whole(memoryview(raw))
    assert whole == payload if size > 2 else whole in (None, payload or None)
    for other in (raw[:-1], raw + b"x", raw[:1], b"\x02" + raw[1:], b"\x8a" + raw[1:], b"\xc2" + raw[1:]):
        assert decoder.whole(memoryview(other)) is None
    assert WebSocketDecoder(expect_mask=not masked).whole(memoryview(raw)) is None
    assert decoder.whole(memoryview(header(Op.BINARY, size, b"KEY1") + payload)) is None
    bit = b"\0\0\0\0" if masked else b""
    found(decoder, bytes((0x02, 0x80 * masked | 1)) + bit + b"a")  # a message has begun
    assert decoder.whole(memoryview(raw)) is None
    found(decoder, bytes((0x80, 0x80 * masked | 2)) + bit + b"b")  # and lacks a byte
    assert decoder.whole(memoryview(raw)) is None


@pytest.mark.parametrize(
    ("masked", "head", "size"),
    [
        (False, b"\x82\x7f", 127),  # a length of eight bytes
        (True, b"\x82\xff", 4 + 127),
        (False, b"\x82\x85", 0x85),  # a mask where none may be
        (True, b"\x82\x05", 4 + 5),  # none where one must be
    ],
)
def test_what_only_has_the_size_of_a_whole_message_is_left_to_the_parser(masked: bool, head: bytes, size: int) -> None:
    assert WebSocketDecoder(expect_mask=masked).whole(memoryview(head + bytes(size))) is None


@given(size=sizes, key=st.none() | st.just(NO_MASK) | st.binary(min_size=4, max_size=4))
def test_what_is_written_is_read_by_the_library(size, key) -> None:
    peer = Protocol(Side.CLIENT if key is None else Side.SERVER, state=State.OPEN, max_size=None)
    payload = bytes(i % 251 for i in range(size))
    masked = payload if key is None else apply_mask(payload, key)
    peer.receive_data(header(Op.BINARY, size, key) + masked)
    peer.receive_data(frame(Op.PING, payload[:125], key))
    assert peer.parser_exc is None
    assert [(e.opcode, bytes(e.data)) for e in peer.events_received() if isinstance(e, Frame)] == [
        (Opcode.BINARY, payload),
        (Opcode.PING, payload[:125]),
    ]


@given(raw=st.binary(max_size=60), cuts=st.lists(st.integers(0, 60), max_size=5), masked=st.booleans())
def test_any_bytes_mean_the_same_however_they_are_cut(raw, cuts, masked) -> None:
    def outcome(*parts: bytes) -> tuple[Said, int]:
        decoder, said = WebSocketDecoder(expect_mask=masked), []
        try:
            for part in parts:
                said += [(op, bytes(payload)) for op, payload in read(decoder, part)]
        except WebSocketError as error:
            return joined(said), error.code
        return joined(said), 0

    assert outcome(raw) == outcome(*pieces(raw, cuts))


@given(raw=st.binary(max_size=60), masked=st.booleans())
def test_what_the_library_refuses_is_refused(raw, masked) -> None:
    """Never more lenient than the library, except that lengths need not be minimal in either."""
    peer = Protocol(Side.SERVER if masked else Side.CLIENT, state=State.OPEN, max_size=None)
    peer.receive_data(raw)
    decoder, refused = WebSocketDecoder(expect_mask=masked), False
    try:
        for op, _ in read(decoder, raw):
            if op is Op.CLOSE:
                return  # nothing after it is looked at
    except WebSocketError:
        refused = True
    if peer.parser_exc is not None and not isinstance(peer.parser_exc, EOFError):
        assert refused, f"the library says {peer.parser_exc!r}"


@pytest.mark.parametrize(
    ("raw", "code", "says"),
    [
        (b"\xc2\x00", 1002, "reserved bits"),
        (b"\x81\x01x", 1003, "a text message"),
        (b"\x83\x00", 1002, "unknown opcode 3"),
        (b"\x8b\x00", 1002, "malformed control frame"),
        (b"\x09\x00", 1002, "malformed control frame"),
        (b"\x89\x7e\x00\x7e", 1002, "malformed control frame"),
        (b"\x80\x00", 1002, "continuation out of place"),
        (b"\x02\x01x\x82\x01x", 1002, "a message inside another"),
        (b"\x82\x80\0\0\0\0", 1002, "a masked frame"),
        (b"\x82\x7f" + (MAX_MESSAGE_FRAME + 1).to_bytes(8, "big"), 1009, "at most 16777216"),
        (b"\x82\x7f" + (2**64 - 1).to_bytes(8, "big"), 1009, "at most 16777216"),
        (b"\x88\x01\x03", 1002, "malformed close"),
        (b"\x88\x02\x03\xed", 1002, "malformed close"),
        (b"\x88\x02\x00\x00", 1002, "malformed close"),
        (b"\x88\x03\x03\xe8\xff", 1007, "not UTF-8"),
    ],
)
@pytest.mark.parametrize("step", [1, 100])
def test_a_server_that_breaks_a_rule_is_told_which(raw: bytes, code: int, says: str, step: int) -> None:
    decoder = WebSocketDecoder(expect_mask=False)
    with pytest.raises(WebSocketError, match=says) as refused:
        found(decoder, *(raw[at : at + step] for at in range(0, len(raw), step)))
    assert refused.value.code == code


def test_a_client_must_mask() -> None:
    with pytest.raises(WebSocketError, match="a client's frame without mask") as refused:
        found(WebSocketDecoder(expect_mask=True), b"\x82\x01x")
    assert refused.value.code == 1002


def test_closes_that_may_be_said_are_read() -> None:
    for payload in (b"", b"\x03\xe8", b"\x03\xe9bye", b"\x0f\xa0", b"\x13\x87"):
        assert found(WebSocketDecoder(expect_mask=False), frame(Op.CLOSE, payload, None)) == [(Op.CLOSE, payload)]


def test_a_zero_mask_copies_nothing() -> None:
    raw = bytearray(header(Op.BINARY, 5, NO_MASK) + b"bytes")
    ((_, payload),) = WebSocketDecoder(expect_mask=True).feed(memoryview(raw))
    raw[-5:] = b"other"
    assert bytes(payload) == b"other", "the payload borrows from what was fed"
