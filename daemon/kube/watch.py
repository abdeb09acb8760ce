"""The stream of a watch: JSON lines in pieces that end anywhere, each line bounded, errors told apart from changes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from daemon.kube.errors import Ask, Unreachable, refusal
from daemon.kube.resources import Object
from protocol.jsontext import parse_json

MAX_LINE_BYTES: Final = 8 * 1024 * 1024  # etcd holds objects of at most 1.5 MiB; escapes and field owners swell them

ADDED: Final = "ADDED"
MODIFIED: Final = "MODIFIED"
DELETED: Final = "DELETED"
BOOKMARK: Final = "BOOKMARK"


@dataclass(frozen=True, slots=True)
class Event:
    """`type` is ADDED, MODIFIED, DELETED or BOOKMARK (an object with nothing but its resourceVersion)."""

    type: str
    object: Object


class Lines:
    """Cuts pieces into lines. Each byte is searched once, however small the pieces are."""

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._held: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """The lines that are whole now; ValueError for one over the limit."""
        first, *rest = piece.split(b"\n")
        self._hold(first)
        whole = []
        for part in rest:
            whole.append(b"".join(self._held))
            self._held, self._size = [], 0
            self._hold(part)
        return [line for line in whole if line.strip()]

    def _hold(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._limit:
            raise ValueError(f"a line of more than {self._limit} bytes")
        if part:
            self._held.append(part)


def decode(ask: Ask, address: str, line: bytes) -> Event:
    """One line. Raises what an ERROR event says (Gone for 410), Unreachable for a line that is no event."""
    try:
        event = parse_json(line)
        kind, body = event["type"], event["object"]
        if not isinstance(kind, str) or not isinstance(body, dict):
            raise TypeError
    except (ValueError, KeyError, TypeError) as error:
        raise Unreachable("TWR114", f"{address} sent a line that is no event in answer to {ask}", ask=ask) from error
    if kind == "ERROR":
        status = body.get("code")
        raise refusal(ask, address, status if isinstance(status, int) else 500, json.dumps(body).encode())
    return Event(kind, body)
