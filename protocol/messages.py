"""Lines of JSON on the control stream: a bounded splitter and an encoder.

The server opens the stream `tower.control` after WELCOME; both ends write objects, one a line, each with a `type`.
An unknown type is skipped, so that either end may be newer.
"""

from __future__ import annotations

import json
from typing import Any

from protocol.constants import Code
from protocol.defaults import MAX_CONTROL_LINE_BYTES
from protocol.errors import RemoteProtocolError
from protocol.jsontext import parse_json

Message = dict[str, Any]


def encode_message(kind: str, **fields: object) -> bytes:
    """One line. ValueError when it would pass the bound that every receiver sets."""
    line = json.dumps({"type": kind, **fields}, separators=(",", ":")).encode() + b"\n"
    if len(line) > MAX_CONTROL_LINE_BYTES:
        raise ValueError(f"a control message {kind!r} of {len(line)} bytes, at most {MAX_CONTROL_LINE_BYTES}")
    return line


class MessageReader:
    """Splits bytes into messages; keeps at most one unfinished line."""

    __slots__ = ("_partial",)

    def __init__(self) -> None:
        self._partial = bytearray()

    def feed(self, data: bytes | memoryview) -> list[Message]:
        """The messages that `data` completes. RemoteProtocolError for a line that is too long or no JSON object."""
        first, *others = bytes(data).split(b"\n")
        self._partial += first  # what was held is not looked at again: a line may come byte by byte
        lines: list[bytes] = []
        if others:
            lines = [bytes(self._partial), *others[:-1]]
            self._partial = bytearray(others[-1])
        if max(map(len, (*lines, self._partial))) > MAX_CONTROL_LINE_BYTES:
            raise RemoteProtocolError(Code.TOO_LARGE, f"a control line above {MAX_CONTROL_LINE_BYTES} bytes")
        return [parse_message(line, what="a control line") for line in lines if line]


def parse_message(line: bytes, *, what: str) -> Message:
    """One line. RemoteProtocolError says of `what` that it is no JSON object with a type."""
    try:
        message = parse_json(line)
    except ValueError as error:
        raise RemoteProtocolError(Code.PROTOCOL, f"{what} that is not JSON") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise RemoteProtocolError(Code.PROTOCOL, f"{what} that is not an object with a type")
    return message
