"""JSON that somebody else wrote, read so that it fails in one way: ValueError, whatever is wrong with it.

Nesting that exhausts the stack is among that. The size is for whoever receives the bytes to bound.
"""

from __future__ import annotations

import json
from typing import Any


def parse_json(data: bytes | str) -> Any:
    """Any value. The ValueError says what is wrong and where."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_object(data: bytes | str) -> dict[str, Any]:
    """An object. The ValueError says what it is instead, to end a sentence: "not JSON", "not a JSON object"."""
    try:
        found = parse_json(data)
    except ValueError as error:
        raise ValueError("not JSON") from error
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found
