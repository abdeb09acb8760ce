"""What a TLS client offers for the key exchange, read before OpenSSL answers it.

The groups of finite fields (RFC 7919) cost a server up to a tenth of a second for each hello, and the client nothing:
with a few hellos a second it would keep everybody else waiting. Python's `ssl` cannot leave them out of the groups that
a server takes; it can only name a single one, which most clients would be asked for in a second round trip. So a hello
that leads to one of them is refused. Clients in use offer elliptic curves, of which every one has to know P-256.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from protocol.defaults import KIB

HELLO_BYTES: Final = 16 * KIB
"""Of a hello with its records' headers, at most; with post-quantum keys they are 2 KiB."""
RECORDS: Final = 16  # of them, at most: mostly it is one
ENTRIES: Final = 64  # of a list in it, at most
REFUSED_ALERT: Final = bytes((21, 3, 3, 0, 2, 2, 40))
"""`handshake_failure`: no acceptable set of parameters (RFC 8446 §6.2)."""
_ALERT, _HANDSHAKE, _CHANGE_CIPHER = 21, 22, 20  # types of records
_CLIENT_HELLO: Final = 1
_SUPPORTED_GROUPS, _KEY_SHARE = 10, 51  # types of extensions
_CURVES: Final = frozenset({23, 24, 25, 29, 30})  # P-256, P-384, P-521, X25519, X448: what OpenSSL 3.0 takes


def refusal(sent: bytes) -> str | None:
    """Why no server should answer what a client has sent so far: "" where it may, None where more is to come first.

    What is no TLS at all is left to OpenSSL, which has words for it.
    """
    if not sent:
        return None
    if sent[0] in (_ALERT, _CHANGE_CIPHER):
        return "it does not begin with a ClientHello"  # OpenSSL bears some of these, and reads on
    if sent[0] != _HANDSHAKE:
        return ""
    try:
        hello = _message(sent)
        if hello is None and len(sent) <= HELLO_BYTES:
            return None
        return "its ClientHello is too long" if hello is None else _judged(hello)
    except IndexError:
        return "its ClientHello is malformed"


def _message(sent: bytes) -> memoryview | None:
    """The ClientHello without its header, from the records that hold it; empty where they hold another message."""
    whole, rest = bytearray(), memoryview(sent)
    for _ in range(RECORDS):
        if rest and rest[0] != _HANDSHAKE:
            raise IndexError  # OpenSSL would bear an alert in between too
        if len(rest) < 5:
            return None
        size = int.from_bytes(rest[3:5], "big")
        whole += rest[5 : 5 + size]
        if len(whole) >= 4:
            if whole[0] != _CLIENT_HELLO:
                return memoryview(b"")
            end = 4 + int.from_bytes(whole[1:4], "big")
            if len(whole) >= end:
                return memoryview(whole)[4:end]
        rest = rest[5 + size :]
    raise IndexError


def _judged(hello: memoryview) -> str:
    if not hello:
        return ""
    rest = hello[2 + 32 :]  # version and random
    for width in (1, 2, 1):  # session id, cipher suites, compression methods
        _, rest = _vector(rest, width)
    offered: set[int] | None = None
    shown: set[int] = set()
    for kind, body in _extensions(_vector(rest, 2)[0]) if rest else ():
        if kind == _SUPPORTED_GROUPS:
            groups = _vector(body, 2)[0]
            offered = {int.from_bytes(groups[at : at + 2], "big") for at in range(0, len(groups), 2)}
        elif kind == _KEY_SHARE:
            shown |= {group for group, _ in _extensions(_vector(body, 2)[0])}  # entries of the same form
    costly = {group for group in shown if 0x0100 <= group <= 0x01FF}
    if costly or (offered is not None and not offered & _CURVES):
        return "it offers a key exchange over a finite field, which costs too much, in place of an elliptic curve"
    return ""


def _extensions(rest: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Of a list of them, each with its type."""
    for _ in range(ENTRIES):
        if not rest:
            return
        kind = rest[0] << 8 | rest[1]
        body, rest = _vector(rest[2:], 2)
        yield kind, body
    if rest:
        raise IndexError


def _vector(rest: memoryview, width: int) -> tuple[memoryview, memoryview]:
    """What a length of `width` bytes announces, and what follows it."""
    end = width + int.from_bytes(rest[:width], "big")
    if len(rest) < max(end, width):
        raise IndexError
    return rest[width:end], rest[end:]
