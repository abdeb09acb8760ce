"""The head of an answer, rewritten on its way back to the caller. Pure.

Hop-by-hop fields of the apiserver's connection are removed; the framing that the body keeps stays. `Connection: close`
is added whenever the gateway will close.
"""

from __future__ import annotations

from typing import Final

from gateway.fields import HOP_BY_HOP
from gateway.head import Framing, ResponseHead

SWITCHING: Final = 101


def relayed_head(head: ResponseHead, *, close: bool) -> bytes:
    """The head for a final answer or an interim one (1xx other than 101)."""
    if head.verbatim and not close:
        return head.raw
    named = head.connection
    lines = [b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason)]
    for lower, name, value in head.fields:
        if lower in HOP_BY_HOP or (named and lower in named and lower != b"content-length"):
            continue
        lines.append(b"%b: %b\r\n" % (name, value))
    if head.framing is Framing.CHUNKED:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    if close:
        lines.append(b"Connection: close\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


def switching_head(head: ResponseHead) -> bytes:
    """The head of a 101: the upgrade is between caller and apiserver, so its two fields are said again."""
    fields = b"".join(
        b"%b: %b\r\n" % (name, value)
        for lower, name, value in head.fields
        if lower not in HOP_BY_HOP and lower not in head.connection
    )
    return b"HTTP/1.1 101 %b\r\n%bConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % (
        head.reason or b"Switching Protocols",
        fields,
        head.upgrade or b"",
    )
