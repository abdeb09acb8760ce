"""Bounded, strict JSON for the small messages of this room: what an attacker sends fails early and by name.

A message is one object; its size is checked before it is parsed, a name that stands twice is refused (two readers could
take different ones), and so are NaN, Infinity and nesting that exhausts the stack. Unknown fields are left alone, so
that a newer peer may add some.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any, Final

from certs.errors import MessageError

Object = Mapping[str, Any]
MAX_COUNT: Final = 2**53
MAX_TIME: Final = 253402300799.0  # the last second of the year 9999: what a certificate can say


def encode(value: Object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def decode(data: bytes, *, limit: int, what: str) -> Object:
    """The one JSON object in `data`, of at most `limit` bytes; MessageError names `what` it should have been."""
    if len(data) > limit:
        raise MessageError(f"{what} has {len(data)} bytes, more than the {limit} allowed")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a name stands twice in one object")
        return result

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        value = json.loads(data, object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as exc:
        raise MessageError(f"{what} is not JSON ({exc})") from exc
    if not isinstance(value, dict):
        raise MessageError(f"{what} is not a JSON object")
    return value


def text(message: Object, name: str, *, limit: int, what: str, required: bool = True) -> str:
    value = message.get(name, None if required else "")
    if not isinstance(value, str) or len(value) > limit or (required and not value):
        raise MessageError(f"{what}: {name!r} must be a text of 1 to {limit} characters")
    try:
        value.encode()  # JSON can say half a character, which nothing else can
    except UnicodeEncodeError:
        raise MessageError(f"{what}: {name!r} holds half a character") from None
    return value


def count(message: Object, name: str, *, what: str) -> int:
    """A whole number that JSON carries exactly; 0 where it is left out."""
    value = message.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_COUNT:
        raise MessageError(f"{what}: {name!r} must be a whole number of 0 or more")
    return value


def number(message: Object, name: str, *, what: str) -> float:
    return as_time(message.get(name), f"{what}: {name!r}")


def as_time(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MessageError(f"{what} must be a number")
    if not (math.isfinite(value) and 0 <= value <= MAX_TIME):
        raise MessageError(f"{what} is out of range")
    return float(value)


def binary(message: Object, name: str, *, limit: int, what: str, required: bool = True) -> bytes:
    """A base64 field; `limit` counts the bytes that it holds."""
    value = text(message, name, limit=(limit + 2) // 3 * 4, what=what, required=required)
    try:
        decoded = base64.b64decode(value, validate=True)
    except ValueError as exc:
        raise MessageError(f"{what}: {name!r} is not base64") from exc
    if base64_text(decoded) != value or len(decoded) > limit:
        raise MessageError(f"{what}: {name!r} is not the one base64 spelling of at most {limit} bytes")
    return decoded


def binaries(message: Object, name: str, *, most: int, limit: int, what: str) -> list[bytes]:
    """A list of 1 to `most` binary values of at most `limit` bytes each."""
    texts = message.get(name)
    if not isinstance(texts, list) or not 1 <= len(texts) <= most:
        raise MessageError(f"{what}: {name!r} must be a list of 1 to {most}")
    return [binary({name: each}, name, limit=limit, what=what) for each in texts]


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode()
