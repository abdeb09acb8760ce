"""Request and response heads: read in exactly one way, or refused.

A caller's head must satisfy two readers: llhttp (through httptools), and the rules here, which are stricter. An
answer's head, from an apiserver that has proved who it is, is held against the grammar alone. Two servers that read
one head differently are how requests are smuggled, so whatever is ambiguous is refused: bare LF or CR, control bytes,
folded lines, a space before the colon, two lengths, a length with a transfer coding, codings other than `chunked`,
HTTP/1.0 with a coding, more or fewer than one Host, targets in absolute or authority form.

A head is bounded before it is parsed (`find_head`), and parsed once, whole. Field order, spelling and values are kept;
optional white space around values is not.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Final, NamedTuple

import httptools

from gateway.errors import AnswerError, RequestError
from gateway.fields import HOP_BY_HOP, tokens
from protocol.defaults import KIB, MAX_HEAD_BYTES, MAX_HEADER_FIELDS

END: Final = b"\r\n\r\n"
MAX_KEPT_BLOCK_BYTES: Final = 8 * KIB  # of a request head; tokens of projected service accounts are about 1 KiB
_NOT_A_REQUEST: Final = "the request line is not `METHOD target HTTP/1.1`"

Field = tuple[bytes, bytes, bytes]  # lower-case name, name as sent, value without white space around it

_REQUEST_LINE: Final = re.compile(rb"([A-Z]{1,16}) ([\x21-\x7e]+) HTTP/1\.([01])\r\n")
_RESPONSE: Final = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*+)?\r\n"
    rb"(?:[A-Za-z0-9!#$%&'*+.^_`|~-]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n"
)
# An answer of known length without a field of the hop, or with the one that says nothing: what nearly all are.
# Whatever is spelt otherwise goes the long way, which decides.
_VALUE: Final = rb"[\t\x20-\x7e\x80-\xff]*+"
_PLAIN_LINE: Final = (
    rb"(?:(?:(?![CcHhKkPpTtUu])|[Cc]ache-|[Cc]ontent-(?=[DdEeRrTt]))[A-Za-z0-9!#$%&'*+.^_`|~-]++:"
    + _VALUE
    + rb"|Connection: keep-alive)\r\n"
)
_EVERYDAY: Final = re.compile(
    rb"HTTP/1\.1 ([2-5][0-9]{2})(?: %b)?\r\n(?:%b){0,99}+[Cc]ontent-[Ll]ength: ?([0-9]{1,18})\r\n(?:%b){0,99}+\r\n"
    % (_VALUE, _PLAIN_LINE, _PLAIN_LINE)
)
_RESPONSE_SPECIAL: Final = re.compile(
    rb"\r\n(content-length|" + b"|".join(sorted(HOP_BY_HOP)) + rb"):([^\r\n]*)", re.IGNORECASE
)
_BODILESS: Final = (b"204", b"304")
_DIGIT_ONE: Final = ord("1")
_HOST: Final = re.compile(rb"[A-Za-z0-9._~\-:\[\]%]*")
_UPGRADE: Final = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:/[A-Za-z0-9!#$%&'*+.^_`|~-]+)?")
_ALLOWED_BYTES: Final = bytes(b for b in range(256) if b in b"\t\r\n" or (b >= 0x20 and b != 0x7F))
_METHODS: Final = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
# An upgrade to another HTTP would let the caller speak to the apiserver past the gateway.
_NOT_RELAYED: Final = (b"h2c", b"h2", b"http", b"tls")
_SPECIAL: Final = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect", b"proxy-connection"}
)


class Framing(IntEnum):
    NONE = 0
    LENGTH = 1
    CHUNKED = 2
    UNTIL_CLOSE = 3  # responses only


# To read a member off its class is a call of Python's in 3.11, and these are read with each head.
_NONE: Final = Framing.NONE
_BY_LENGTH: Final = Framing.LENGTH
_CHUNKED: Final = Framing.CHUNKED
_UNTIL_CLOSE: Final = Framing.UNTIL_CLOSE


# NamedTuples rather than frozen dataclasses: one of each is made per request, and they cost a fifth to make.
class RequestHead(NamedTuple):
    method: bytes
    target: bytes
    minor: int
    fields: list[Field]
    framing: Framing
    length: int
    keep_alive: bool
    upgrade: bytes | None
    """The protocol of a real upgrade request (`Connection: upgrade` and one `Upgrade` that we relay), as sent."""
    expects_continue: bool
    connection: tuple[bytes, ...]
    """Lower-case names in `Connection`."""


class ResponseHead(NamedTuple):
    status: int
    minor: int
    raw: bytes
    framing: Framing
    length: int
    keep_alive: bool
    upgrade: bytes | None
    connection: tuple[bytes, ...]
    verbatim: bool
    """HTTP/1.1 and without any field of the hop: the head may pass as it is."""

    @property
    def reason(self) -> bytes:
        return self.raw[13 : self.raw.find(b"\r\n")]

    @property
    def fields(self) -> list[Field]:
        lines = self.raw[:-4].split(b"\r\n")[1:]
        pairs = (line.split(b":", 1) for line in lines)
        return [(name.lower(), name, value.strip(b" \t")) for name, value in pairs]


def find_head(data: bytes | bytearray, searched: int = 0) -> int:
    """The length of the head at the start of `data`, its empty line included; 0 when it is not complete yet.

    `searched` bytes were looked at before. Raises RequestError when it can never become a head that we accept.
    """
    end = data.find(END, max(searched - 3, 0), MAX_HEAD_BYTES)
    if end >= 0:
        return end + 4
    if len(data) >= MAX_HEAD_BYTES:
        raise RequestError(f"the head of the request is larger than {MAX_HEAD_BYTES} bytes", "TWR410")
    if data.count(b"\n", searched) != data.count(b"\r\n", max(searched - 1, 0)):
        raise RequestError("a line of the request's head ends with LF alone")
    return 0


class _Collector:
    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: list[Field] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), name, value.strip(b" \t")))


def _check_bytes(raw: bytes) -> str | None:
    if raw.translate(None, _ALLOWED_BYTES):
        return "the head holds control bytes"
    lines = raw.count(b"\r\n")
    if raw.count(b"\n") != lines or raw.count(b"\r") != lines:
        return "the head holds a CR or LF that does not end a line"
    if lines > MAX_HEADER_FIELDS + 2:
        return ""  # the caller of this function knows the status
    return None


def parse_request(raw: bytes) -> RequestHead:
    """The head in `raw`, which is one whole head with its empty line and nothing else. Raises RequestError."""
    wrong = _check_bytes(raw)
    if wrong is not None:
        if not wrong:
            raise RequestError(f"the request has more than {MAX_HEADER_FIELDS} header fields", "TWR410")
        raise RequestError(wrong)
    line = _REQUEST_LINE.match(raw)
    if line is None:
        raise RequestError(_NOT_A_REQUEST)
    method, target, minor_digit = line.groups()
    collector = _Collector()
    try:
        httptools.HttpRequestParser(collector).feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # raised at the end of every upgrade request's head
    except httptools.HttpParserError as error:
        raise RequestError(f"the head cannot be read: {error}") from None
    minor = 1 if minor_digit == b"1" else 0
    _check_target(method, target)
    return _request_of(method, target, minor, collector.fields)


class RequestReader:
    """`parse_request` for one connection. Clients repeat their header fields: those of the last head are kept.

    Two heads with the same fields, byte by byte, have the same `fields` object: what was concluded from it still holds.
    """

    __slots__ = ("_block", "_head", "_raw")

    def __init__(self) -> None:
        self._raw = b""
        self._block = b""
        self._head: RequestHead | None = None

    def parse(self, raw: bytes) -> RequestHead:
        """Raises RequestError."""
        last = self._head
        if last is not None and raw == self._raw:
            return last
        line_end = raw.find(b"\r\n") - 1  # the block begins with the version's last digit
        block = raw[line_end:]
        if last is not None and block == self._block:
            line = _REQUEST_LINE.match(raw)
            if line is None:
                raise RequestError(_NOT_A_REQUEST)
            method, target, _ = line.groups()
            _check_target(method, target)
            head = RequestHead(method, target, *last[2:])
        else:
            head = parse_request(raw)
        if len(raw) <= MAX_KEPT_BLOCK_BYTES:
            self._raw, self._block, self._head = raw, block, head
        return head


def _check_target(method: bytes, target: bytes) -> None:
    if method not in _METHODS:
        raise RequestError(f"the method {method.decode()} is not relayed")
    if target[:1] != b"/" and not (target == b"*" and method == b"OPTIONS"):
        raise RequestError("the request target does not start with a slash; requests to a proxy are not served here")
    if b"#" in target:
        raise RequestError("the request target holds a fragment")


def _request_of(method: bytes, target: bytes, minor: int, fields: list[Field]) -> RequestHead:
    framing, length = Framing.NONE, 0
    hosts = 0
    keep_alive = minor == 1
    upgrades: list[bytes] = []
    expects = False
    connection: tuple[bytes, ...] = ()
    for lower, _, value in fields:
        if lower not in _SPECIAL:
            continue
        if lower == b"host":
            hosts += 1
            if not _HOST.fullmatch(value):
                raise RequestError("the Host field is not a host and port")
        elif lower == b"connection":
            connection += tuple(tokens(value))
        elif lower == b"content-length":
            length = _length(value, framing, RequestError)
            framing = Framing.LENGTH
        elif lower == b"transfer-encoding":
            if framing is not Framing.NONE or value.lower() != b"chunked" or minor == 0:
                raise RequestError(
                    "Transfer-Encoding is not `chunked` alone, once, without Content-Length, in HTTP/1.1"
                )
            framing = Framing.CHUNKED
        elif lower == b"upgrade":
            upgrades.append(value)
        elif lower == b"expect":
            if value.lower() != b"100-continue":
                raise RequestError("the Expect field asks for something other than 100-continue")
            expects = minor == 1
    if hosts > 1 or (hosts == 0 and minor == 1):
        raise RequestError("the request does not have exactly one Host field")
    if b"close" in connection:
        keep_alive = False
    upgrade = _upgrade_of(upgrades, connection) if upgrades and minor == 1 else None
    if upgrade is not None and (length or framing is Framing.CHUNKED):
        raise RequestError("an upgrade request carries a body")
    return RequestHead(method, target, minor, fields, framing, length, keep_alive, upgrade, expects, connection)


def _upgrade_of(upgrades: list[bytes], connection: tuple[bytes, ...]) -> bytes | None:
    if b"upgrade" not in connection:
        return None
    if len(upgrades) > 1 or not _UPGRADE.fullmatch(upgrades[0]):
        raise RequestError("the Upgrade field does not name exactly one protocol")
    name = upgrades[0].lower().split(b"/")[0]
    return None if name in _NOT_RELAYED else upgrades[0]


def _length(value: bytes, framing: Framing, error: type[RequestError | AnswerError]) -> int:
    if framing is not _NONE:
        raise error("the body has two lengths, or a length and a transfer coding")
    if not value.isdigit() or len(value) > 18:
        raise error("Content-Length is not a plain number")
    return int(value)


def parse_response(raw: bytes, *, to_head: bool = False) -> ResponseHead:
    """The head in `raw`, as an answer to HEAD or to another method. Raises AnswerError."""
    everyday = _EVERYDAY.fullmatch(raw)
    if everyday is not None and not to_head and everyday[1] not in _BODILESS:
        return ResponseHead(int(everyday[1]), 1, raw, _BY_LENGTH, int(everyday[2]), True, None, (), True)
    if _RESPONSE.fullmatch(raw) is None:
        raise AnswerError("the head of the answer is not that of an HTTP/1 response")
    if raw.count(b"\r\n") > MAX_HEADER_FIELDS + 2:
        raise AnswerError(f"the answer has more than {MAX_HEADER_FIELDS} header fields")
    status, minor = int(raw[9:12]), 1 if raw[7] == _DIGIT_ONE else 0
    framing, length = _NONE, 0
    verbatim = minor == 1
    upgrade: bytes | None = None
    connection: tuple[bytes, ...] = ()
    for name, value in _RESPONSE_SPECIAL.findall(raw):
        lower = name.lower()
        if lower == b"content-length":
            length = _length(value.strip(b" \t"), framing, AnswerError)
            framing = _BY_LENGTH
            continue
        if lower == b"connection" and value.strip(b" \t").lower() == b"keep-alive" and not connection:
            connection = (b"keep-alive",)  # what some servers say to every request; it changes nothing
            continue
        verbatim = False
        if lower == b"transfer-encoding":
            if framing is not _NONE or value.strip(b" \t").lower() != b"chunked" or minor == 0:
                raise AnswerError("the answer's Transfer-Encoding is not `chunked` alone, once, without Content-Length")
            framing = _CHUNKED
        elif lower == b"connection":
            connection += tuple(tokens(value))
        elif lower == b"upgrade":
            upgrade = value.strip(b" \t")
    keep_alive = minor == 1 and b"close" not in connection
    if to_head or status < 200 or status in (204, 304):
        framing, length = _NONE, 0
    elif framing is _NONE:
        framing, keep_alive = _UNTIL_CLOSE, False
    return ResponseHead(status, minor, raw, framing, length, keep_alive, upgrade, connection, verbatim)
