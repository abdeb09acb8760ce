"""Where bodies end: the scanners against h11, cut anywhere, and what must not pass in trailers."""

from __future__ import annotations

from itertools import pairwise

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.body import (
    MAX_CHUNK_LINE_BYTES,
    MAX_TRAILER_BYTES,
    MAX_TRAILER_FIELDS,
    Chunked,
    Counted,
    UntilClose,
    scanner,
)
from gateway.errors import AnswerError, RequestError
from gateway.head import Framing
from tests.lab.examples import examples


def relay(data: bytes, cuts: list[int], body: Chunked | Counted | None = None) -> tuple[bytes, int, bool]:
    """What passes, how much was the message's, and whether it ended, when `data` comes in pieces."""
    body = body or Chunked(RequestError)
    passed, used = b"", 0
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for start, end in pairwise(edges):
        piece, consumed = body.feed(memoryview(data)[start:end])
        passed += bytes(piece)
        used += consumed
        if body.done:
            break
        assert consumed == end - start
    return passed, used, body.done


def test_a_counted_body_ends_at_its_length() -> None:
    assert relay(b"abcdefNEXT", [2, 4], Counted(6)) == (b"abcdef", 6, True)
    assert relay(b"abc", [], Counted(6)) == (b"abc", 3, False)


def test_a_body_until_close_never_ends() -> None:
    body = UntilClose()
    assert body.feed(b"abc") == (b"abc", 3)
    assert not body.done


def test_scanner_by_framing() -> None:
    assert scanner(Framing.NONE, 0, AnswerError) is None
    assert scanner(Framing.LENGTH, 0, AnswerError) is None
    assert isinstance(scanner(Framing.LENGTH, 1, AnswerError), Counted)
    assert isinstance(scanner(Framing.CHUNKED, 0, AnswerError), Chunked)
    assert isinstance(scanner(Framing.UNTIL_CLOSE, 0, AnswerError), UntilClose)


BODY = b"5\r\nhello\r\nA;ext=1\r\n0123456789\r\n0\r\n\r\n"


def test_a_chunked_body_passes_verbatim_however_it_is_cut() -> None:
    for cut in range(len(BODY)):
        for second in range(cut, len(BODY)):
            assert relay(BODY + b"NEXT", [cut, second]) == (BODY, len(BODY), True)


def test_byte_by_byte() -> None:
    assert relay(BODY, list(range(len(BODY)))) == (BODY, len(BODY), True)


@examples(300)
@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.lists(st.integers(0, 400), max_size=8),
    st.integers(0, 400),
    st.one_of(st.just(b""), st.binary(max_size=2), st.sampled_from([b"\r\n", b"\n", b"0", b";", b"+", b" "])),
    st.integers(0, 2),
)
def test_what_is_accepted_ends_where_h11_ends_it(
    chunks: list[bytes], cuts: list[int], at: int, mutation: bytes, drop: int
) -> None:
    data = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    if mutation or drop:
        at %= len(data)
        data = data[:at] + mutation + data[at + drop :]
    data += b"NEXT-MESSAGE"
    try:
        passed, used, done = relay(data, cuts)
    except RequestError:
        return
    if not done:
        return
    peer = h11.Connection(h11.SERVER)
    peer.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    peer.next_event()
    content = b""
    while isinstance(event := peer.next_event(), h11.Data):
        content += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert peer.trailing_data[0] == data[used:]
    if not list(event.headers):
        assert passed == data[:used]


MALFORMED = {
    "plus": b"+5\r\nhello\r\n0\r\n\r\n",
    "minus": b"-5\r\nhello\r\n0\r\n\r\n",
    "0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "underscore": b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
    "space before": b" 5\r\nhello\r\n0\r\n\r\n",
    "space after": b"5 \r\nhello\r\n0\r\n\r\n",
    "empty": b"\r\nhello\r\n0\r\n\r\n",
    "bare LF after the size": b"5\nhello\r\n0\r\n\r\n",
    "bare LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "bare CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "bare LF after the data": b"5\r\nhello\n0\r\n\r\n",
    "chunk too long": b"5\r\nhello!\r\n0\r\n\r\n",
    "chunk too short": b"5\r\nhell\r\n0\r\n\r\n",
    "size beyond 60 bits": b"1000000000000000\r\n",
    "endless size line": b"0" * (MAX_CHUNK_LINE_BYTES + 1),
    "endless extension": b"1;" + b"a" * MAX_CHUNK_LINE_BYTES + b"\r\n",
    "control byte in an extension": b"1;\x00\r\na\r\n0\r\n\r\n",
    "trailer without a colon": b"0\r\nabc\r\n\r\n",
    "folded trailer": b"0\r\nA: b\r\n c\r\n\r\n",
    "space before a trailer's colon": b"0\r\nA : b\r\n\r\n",
    "bare LF in trailers": b"0\r\nA: b\nC: d\r\n\r\n",
    "trailers end with bare LF": b"0\r\nA: b\n\n",
    "endless trailers": b"0\r\n" + b"A: b\r\n" * (MAX_TRAILER_BYTES // 6 + 2),
    "too many trailers": b"0\r\n" + b"A: b\r\n" * (MAX_TRAILER_FIELDS + 1) + b"\r\n",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("split", [False, True], ids=["whole", "byte by byte"])
def test_malformed_chunks_are_refused(data: bytes, split: bool) -> None:
    with pytest.raises(RequestError):
        relay(data, list(range(len(data))) if split else [])


def test_the_apiservers_fault_is_the_apiservers() -> None:
    with pytest.raises(AnswerError):
        Chunked(AnswerError).feed(b"xyz\r\n")


TRAILERS = (
    b"X-Checksum: abc\r\nImpersonate-User: system:admin\r\nimpersonate-extra-a: b\r\nX-Remote-User: root\r\n"
    b"Authorization: Bearer x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: evil\r\nConnection: close\r\n"
    b"X-Forwarded-For: 1.2.3.4\r\nTrailer: A\r\nAudit-ID: 1\r\nGrpc-Status: 0\r\n"
)


def test_trailers_pass_without_identity_framing_and_hop_fields() -> None:
    data = b"3\r\nabc\r\n0\r\n" + TRAILERS + b"\r\nNEXT"
    expected = b"3\r\nabc\r\n0\r\nX-Checksum: abc\r\nGrpc-Status: 0\r\n\r\n"
    for cut in range(len(data)):
        passed, used, done = relay(data, [cut])
        assert done
        assert passed == expected
        assert data[used:] == b"NEXT"


def test_between_chunks_a_last_one_could_be_put() -> None:
    body = Chunked(AnswerError)
    assert body.at_boundary
    body.feed(b"5\r\nhel")
    assert not body.at_boundary
    body.feed(b"lo\r\n")
    assert body.at_boundary
    body.feed(b"0")
    assert not body.at_boundary
