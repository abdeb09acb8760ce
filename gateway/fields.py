"""What happens to each header field, by its lower-case name.

The order is the point: fields of one hop go first (those that `Connection` names included), our identity is set last,
so that nobody can have it stripped by naming it in `Connection`. The same names are refused in trailers, which some
servers merge into the header.
"""

from __future__ import annotations

from typing import Final

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)

# Never taken from a caller: an apiserver behind an authenticating proxy believes them.
ALWAYS_DROPPED: Final = frozenset({b"x-real-ip", b"audit-id", b"forwarded"})
DROPPED_PREFIXES: Final = (b"x-remote-", b"x-forwarded-")
IMPERSONATE: Final = b"impersonate-"

# Set anew from what the parser understood, never copied.
FRAMING: Final = frozenset({b"host", b"content-length", b"transfer-encoding"})

_NEVER_IN_TRAILERS: Final = (
    HOP_BY_HOP
    | ALWAYS_DROPPED
    | FRAMING
    | {
        b"authorization",
        b"cookie",
        b"set-cookie",
        b"content-encoding",
        b"content-range",
        b"content-type",
        b"expect",
        b"max-forwards",
        b"range",
        b"sec-websocket-protocol",
        b"trailer",
        b"www-authenticate",
    }
)
_NEVER_PREFIXES: Final = (*DROPPED_PREFIXES, IMPERSONATE)


def allowed_in_trailer(lower: bytes) -> bool:
    lower = lower.replace(b"_", b"-")  # some servers take it for a hyphen
    return lower not in _NEVER_IN_TRAILERS and not lower.startswith(_NEVER_PREFIXES)


def tokens(value: bytes) -> list[bytes]:
    """The members of a comma-separated field, lower-case."""
    return [token for part in value.lower().split(b",") if (token := part.strip(b" \t"))]
