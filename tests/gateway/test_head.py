"""Heads: what is accepted is read as h11 reads it, and everything ambiguous is refused."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.errors import AnswerError, RequestError
from gateway.head import Framing, RequestReader, find_head, parse_request, parse_response
from protocol.defaults import MAX_HEAD_BYTES, MAX_HEADER_FIELDS
from tests.lab.examples import examples

HOST = b"Host: a\r\n"


def post(*lines: bytes, version: bytes = b"1.1") -> bytes:
    return b"POST / HTTP/" + version + b"\r\n" + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


AMBIGUOUS = {
    "length and coding": post(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "coding and length": post(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "two lengths": post(b"Content-Length: 5", b"Content-Length: 6"),
    "the same length twice": post(b"Content-Length: 5", b"Content-Length: 5"),
    "list of lengths": post(b"Content-Length: 5, 5"),
    "plus": post(b"Content-Length: +5"),
    "minus": post(b"Content-Length: -5"),
    "hexadecimal": post(b"Content-Length: 0x5"),
    "underscore": post(b"Content-Length: 5_0"),
    "empty length": post(b"Content-Length: "),
    "unicode digit": post("Content-Length: ٣".encode()),
    "length beyond 64 bits": post(b"Content-Length: 18446744073709551621"),
    "xchunked": post(b"Transfer-Encoding: xchunked"),
    "gzip, chunked": post(b"Transfer-Encoding: gzip, chunked"),
    "chunked, identity": post(b"Transfer-Encoding: chunked, identity"),
    "chunked twice": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "identity": post(b"Transfer-Encoding: identity"),
    "vertical tab before chunked": post(b"Transfer-Encoding: \x0bchunked"),
    "quoted chunked": post(b'Transfer-Encoding: "chunked"'),
    "space before colon": post(b"Transfer-Encoding : chunked"),
    "tab before colon": post(b"Content-Length\t: 5"),
    "folded": post(b"X: a", b" b"),
    "folded with a tab": post(b"Transfer-Encoding:", b"\tchunked"),
    "bare LF line": post(b"X: a\nContent-Length: 5"),
    "bare CR": post(b"X: a\rContent-Length: 5"),
    "all bare LF": b"GET / HTTP/1.1\nHost: a\n\r\n\r\n",
    "NUL in a value": post(b"X: a\x00b"),
    "NUL in a name": post(b"X\x00: a"),
    "control byte": post(b"X: a\x01"),
    "delete": post(b"X: \x7f"),
    "no colon": post(b"Header"),
    "empty name": post(b": x"),
    "name with a bracket": post(b"X[]: y"),
    "name beyond ASCII": post(b"X\xc3\xa9: y"),
    "HTTP/1.0 with a coding": post(b"Transfer-Encoding: chunked", version=b"1.0"),
    "two hosts": post(b"Host: b"),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "host with a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "host with a user": b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
    "host with a space": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "absolute form": b"GET http://evil/api HTTP/1.1\r\n" + HOST + b"\r\n",
    "authority form": b"CONNECT evil:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "no slash": b"GET api HTTP/1.1\r\n" + HOST + b"\r\n",
    "star with GET": b"GET * HTTP/1.1\r\n" + HOST + b"\r\n",
    "fragment": b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n",
    "tab in the request line": b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "space in the target": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "target beyond ASCII": b"GET /\xc3\xa9 HTTP/1.1\r\n" + HOST + b"\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
    "HTTP/1.10": b"GET / HTTP/1.10\r\n" + HOST + b"\r\n",
    "HTTP/1,1": b"GET / HTTP/1,1\r\n" + HOST + b"\r\n",
    "lower case http": b"GET / http/1.1\r\n" + HOST + b"\r\n",
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\n",
    "lower case method": b"get / HTTP/1.1\r\n" + HOST + b"\r\n",
    "unknown method": b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n",
    "TRACE": b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n",
    "empty line first": b"\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n",
    "leading space": b" GET / HTTP/1.1\r\n" + HOST + b"\r\n",
    "space before the first field": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "expectation unknown": post(b"Expect: 200-ok"),
    "upgrade with a body": post(b"Connection: upgrade", b"Upgrade: websocket", b"Content-Length: 5"),
    "upgrade to two": post(b"Connection: upgrade", b"Upgrade: websocket, SPDY/3.1"),
    "two upgrades": post(b"Connection: upgrade", b"Upgrade: websocket", b"Upgrade: SPDY/3.1"),
}


@pytest.mark.parametrize("raw", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_what_two_readers_could_read_differently_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(raw)
    assert caught.value.http_status == 400
    with pytest.raises(RequestError):
        RequestReader().parse(raw)


@pytest.mark.parametrize("raw", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_a_good_head_before_does_not_let_a_bad_one_through(raw: bytes) -> None:
    reader = RequestReader()
    reader.parse(post())
    reader.parse(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    with pytest.raises(RequestError):
        reader.parse(raw)


def test_an_ordinary_request_is_kept_in_order_and_spelling() -> None:
    head = parse_request(b"GET /api?x=1 HTTP/1.1\r\nhOsT: a:6443\r\nAccept:  b \t\r\nACCEPT: c\r\nX-E:\r\n\r\n")
    assert (head.method, head.target, head.minor) == (b"GET", b"/api?x=1", 1)
    assert head.fields == [
        (b"host", b"hOsT", b"a:6443"),
        (b"accept", b"Accept", b"b"),
        (b"accept", b"ACCEPT", b"c"),
        (b"x-e", b"X-E", b""),
    ]
    assert head.framing is Framing.NONE
    assert head.keep_alive
    assert head.upgrade is None


@pytest.mark.parametrize(
    ("line", "framing", "length"),
    [
        (b"Content-Length: 0", Framing.LENGTH, 0),
        (b"Content-Length: 007", Framing.LENGTH, 7),
        (b"Transfer-Encoding: Chunked", Framing.CHUNKED, 0),
    ],
)
def test_framing(line: bytes, framing: Framing, length: int) -> None:
    head = parse_request(post(line))
    assert (head.framing, head.length) == (framing, length)


def test_keep_alive_follows_version_and_connection() -> None:
    assert parse_request(post(b"Connection: keep-alive")).keep_alive
    assert not parse_request(post(b"Connection: X, Close")).keep_alive
    assert not parse_request(post(version=b"1.0")).keep_alive
    assert not parse_request(post(b"Connection: keep-alive", version=b"1.0")).keep_alive


def test_only_a_real_upgrade_counts() -> None:
    assert parse_request(post(b"Connection: a, Upgrade", b"Upgrade: SPDY/3.1")).upgrade == b"SPDY/3.1"
    assert parse_request(post(b"Upgrade: websocket")).upgrade is None
    assert parse_request(post(b"Connection: upgrade")).upgrade is None
    assert parse_request(post(b"Connection: upgrade", b"Upgrade: websocket", version=b"1.0")).upgrade is None


@pytest.mark.parametrize("protocol", [b"h2c", b"H2C", b"h2", b"HTTP/2.0", b"TLS/1.0"])
def test_an_upgrade_past_the_gateway_is_not_relayed(protocol: bytes) -> None:
    assert parse_request(post(b"Connection: upgrade", b"Upgrade: " + protocol)).upgrade is None


def test_expect_only_in_http_1_1() -> None:
    assert parse_request(post(b"Expect: 100-Continue", b"Content-Length: 3")).expects_continue
    assert not parse_request(post(b"Expect: 100-continue", version=b"1.0")).expects_continue


def test_fields_are_bounded() -> None:
    def many(count: int) -> bytes:
        return b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * (count - 1) + b"\r\n"

    assert len(parse_request(many(MAX_HEADER_FIELDS)).fields) == MAX_HEADER_FIELDS
    with pytest.raises(RequestError) as caught:
        parse_request(many(MAX_HEADER_FIELDS + 1))
    assert caught.value.http_status == 431


def test_a_head_is_bounded_before_it_is_parsed() -> None:
    filler = b"X: " + b"y" * MAX_HEAD_BYTES
    with pytest.raises(RequestError) as caught:
        find_head(b"GET / HTTP/1.1\r\n" + filler)
    assert caught.value.http_status == 431
    with pytest.raises(RequestError):
        find_head(b"GET / HTTP/1.1\r\n" + filler + b"\r\n\r\n")
    fits = b"GET / HTTP/1.1\r\nX: "
    fits += b"y" * (MAX_HEAD_BYTES - len(fits) - 4) + b"\r\n\r\n"
    assert find_head(fits + b"more") == MAX_HEAD_BYTES


def test_a_head_is_found_however_it_is_cut() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    for cut in range(len(head)):
        assert find_head(head[:cut]) == 0
        assert find_head(head + b"rest", cut) == len(head)


def test_bare_lf_is_refused_as_soon_as_it_is_seen() -> None:
    with pytest.raises(RequestError, match="LF alone"):
        find_head(b"GET / HTTP/1.1\nHost: a\n\n")


def test_a_repeated_block_gives_the_same_fields_with_the_new_request_line() -> None:
    reader = RequestReader()
    block = b"Host: a\r\nAuthorization: Bearer x\r\n\r\n"
    first = reader.parse(b"GET /a HTTP/1.1\r\n" + block)
    second = reader.parse(b"DELETE /b HTTP/1.1\r\n" + block)
    assert second.fields is first.fields
    assert (second.method, second.target) == (b"DELETE", b"/b")
    assert second == parse_request(b"DELETE /b HTTP/1.1\r\n" + block)
    older = reader.parse(b"GET /a HTTP/1.0\r\n" + block)
    assert older.minor == 0
    assert not older.keep_alive


# -- answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_from_a_go_server_may_pass_as_it_is() -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 12\r\n\r\n"
    head = parse_response(raw)
    assert (head.status, head.reason, head.framing, head.length) == (200, b"OK", Framing.LENGTH, 12)
    assert head.verbatim
    assert head.keep_alive


@pytest.mark.parametrize(
    ("raw", "framing", "keep_alive"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Framing.CHUNKED, True),
        (b"HTTP/1.1 200 OK\r\n\r\n", Framing.UNTIL_CLOSE, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", Framing.LENGTH, False),
        (b"HTTP/1.1 200\r\nContent-Length: 1\r\nConnection: close\r\n\r\n", Framing.LENGTH, False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: Keep-Alive\r\n\r\n", Framing.LENGTH, True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Framing.NONE, True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", Framing.NONE, True),
        (b"HTTP/1.1 100 Continue\r\n\r\n", Framing.NONE, True),
    ],
)
def test_framing_of_answers(raw: bytes, framing: Framing, keep_alive: bool) -> None:
    head = parse_response(raw)
    assert (head.framing, head.keep_alive) == (framing, keep_alive)


def test_an_answer_to_head_has_no_body() -> None:
    head = parse_response(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", to_head=True)
    assert head.framing is Framing.NONE


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\ncontent-length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x00\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 600 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 201 + b"\r\n",
    ],
)
def test_an_ambiguous_answer_is_not_relayed(raw: bytes) -> None:
    with pytest.raises(AnswerError) as caught:
        parse_response(raw)
    assert caught.value.http_status == 502


# -- against an independent reader -----------------------------------------------------------------------------------

PIECES = [
    b"GET ", b"POST ", b"HEAD ", b"/", b"/a?b=c", b"http://x/", b" ", b"\t", b"HTTP/1.1", b"HTTP/1.0", b"\r\n", b"\n",
    b"\r", b"\r\n\r\n", b"Host: a\r\n", b"Host: b\r\n", b"Content-Length: 5\r\n", b"Content-Length: 05\r\n",
    b"Content-Length:5\r\n", b"Content-Length : 5\r\n", b"Content-Length: 5, 5\r\n", b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: Chunked\r\n", b"Transfer-Encoding: x\r\n",
    b"Connection: close\r\n", b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"Expect: 100-continue\r\n",
    b"X: \xff\r\n", b"X:\r\n", b"X: a b\r\n", b" folded\r\n", b":", b"\x00", b"\x0b", b"X-Y_Z: 1\r\n",
]  # fmt: skip
VALID = st.builds(
    lambda line, fields: line + b"Host: a\r\n" + b"".join(fields) + b"\r\n",
    st.sampled_from([b"GET / HTTP/1.1\r\n", b"POST /x HTTP/1.1\r\n", b"PUT /x HTTP/1.0\r\n", b"DELETE / HTTP/1.1\r\n"]),
    st.lists(st.sampled_from([piece for piece in PIECES if piece.endswith(b"\r\n")]), max_size=5),
)
MUTATED = st.builds(
    lambda raw, at, piece, cut: raw[: at % len(raw)] + piece + raw[at % len(raw) + cut :],
    VALID,
    st.integers(0, 400),
    st.one_of(st.sampled_from(PIECES), st.binary(max_size=3)),
    st.integers(0, 4),
)


def as_h11_reads(raw: bytes, framing: Framing, length: int) -> tuple[h11.Request, bytes]:
    """h11's request, and what it left over when the body that we expect and then `NEXT` follow."""
    body = {Framing.NONE: b"", Framing.LENGTH: b"x" * length, Framing.CHUNKED: b"3\r\nabc\r\n0\r\n\r\n"}[framing]
    peer = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    peer.receive_data(raw + body + b"NEXT")
    request = peer.next_event()
    assert isinstance(request, h11.Request)
    while not isinstance(event := peer.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data), event
    return request, peer.trailing_data[0]


@examples(600)
@given(st.one_of(VALID, MUTATED))
@example(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
def test_every_head_that_is_accepted_is_read_as_h11_reads_it(raw: bytes) -> None:
    try:
        size = find_head(raw)
        if not size:
            return
        ours = parse_request(raw[:size])
    except RequestError:
        return
    theirs, left = as_h11_reads(raw[:size], ours.framing, ours.length)
    assert left == b"NEXT"
    assert (theirs.method, theirs.target) == (ours.method, ours.target)
    framing = (b"content-length", b"transfer-encoding")  # h11 writes these anew
    assert [pair for pair in theirs.headers.raw_items() if pair[0].lower() not in framing] == [
        (name, value) for lower, name, value in ours.fields if lower not in framing
    ]


ANSWER = st.builds(
    lambda line, fields: line + b"".join(fields) + b"\r\n",
    st.sampled_from(
        [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 404 Not Found\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 204 \r\n"]
    ),
    st.lists(st.sampled_from([piece for piece in PIECES if piece.endswith(b"\r\n")]), max_size=5),
)
MUTATED_ANSWER = st.builds(
    lambda raw, at, piece, cut: raw[: at % len(raw)] + piece + raw[at % len(raw) + cut :],
    ANSWER,
    st.integers(0, 400),
    st.one_of(st.sampled_from(PIECES), st.binary(max_size=3)),
    st.integers(0, 4),
)


@examples(600)
@given(st.one_of(ANSWER, MUTATED_ANSWER))
def test_every_answer_that_is_accepted_is_read_as_h11_reads_it(raw: bytes) -> None:
    end = raw.find(b"\r\n\r\n") + 4
    try:
        ours = parse_response(raw[:end])
    except AnswerError:
        return
    if ours.status < 200:
        return
    peer = h11.Connection(h11.CLIENT)
    peer.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    peer.send(h11.EndOfMessage())
    body = {
        Framing.NONE: b"",
        Framing.LENGTH: b"x" * ours.length,
        Framing.CHUNKED: b"3\r\nabc\r\n0\r\n\r\n",
        Framing.UNTIL_CLOSE: b"",
    }[ours.framing]
    peer.receive_data(ours.raw + body + b"NEXT")
    head = peer.next_event()
    assert isinstance(head, h11.Response)
    assert head.status_code == ours.status
    seen = b""
    while isinstance(event := peer.next_event(), h11.Data):
        seen += event.data
    if ours.framing is Framing.UNTIL_CLOSE:
        assert seen == b"NEXT"
    else:
        assert isinstance(event, h11.EndOfMessage)
        assert peer.trailing_data[0] == b"NEXT"


ANSWER_LINES = [
    *(b"Content-Length: 5", b"content-length: 5", b"Content-Length:5", b"CONTENT-LENGTH: 5", b"Content-Length: +5"),
    *(
        b"Content-Type: a",
        b"Content-Lengt: 4",
        b"Content-Encoding: gzip",
        b"X-Content-Length: 9",
        b"Content-\nLength: 5",
    ),
    *(b"Connection: keep-alive", b"Connection: close", b"CoNNection: close", b"Connection: keep-alive, close"),
    *(b"Transfer-Encoding: chunked", b"transfer-encoding: chunked", b"Date: x\nTransfer-Encoding: chunked"),
    *(b"Cache-Control: x", b"Cookie: x", b"Upgrade: x", b"TE: x", b"Keep-Alive: 5", b"HTTP2-Settings: a"),
    *(b"A: b", b"A : b", b": b", b"A: \x01", b" folded", b"Proxy-Connection: close", b"Cache-Length"),
]


@examples(600)
@given(
    st.sampled_from(
        [b"1.1 200 OK", b"1.1 404 Not Found", b"1.1 200", b"1.1 204 No", b"1.1 304 ", b"1.1 101 Go", b"1.0 200 "]
    ),
    st.lists(st.sampled_from(ANSWER_LINES), max_size=5, unique=True),
    st.booleans(),
)
def test_the_short_way_reads_an_answer_as_the_long_way_does(start: bytes, lines: list[bytes], to_head: bool) -> None:
    """A field in a spelling that only the long way takes must change nothing."""
    raw = b"HTTP/" + start + b"\r\n" + b"".join(line + b"\r\n" for line in [*lines, b"Content-Length: 5"]) + b"\r\n"
    odd = raw[:-2] + b"P: x\r\n\r\n"  # no field of the hop, but one that the short way does not know
    read = []
    for each in (raw, odd):
        try:
            read.append(parse_response(each, to_head=to_head)._replace(raw=b"", connection=()))
        except AnswerError as error:
            read.append(str(error))
    assert read[0] == read[1]
