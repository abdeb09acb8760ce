"""The report of an agent about its member, bounded and cleaned before it is kept.

A report is shown to people, logged, and listed beside those of all other clusters. What one agent says must neither
break that list for the others nor control somebody's terminal: texts are cut, control characters and lone surrogates
(which no encoder takes) are removed, numbers have to be finite, and nesting is shallow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

from protocol.frames import printable

MAX_DEPTH: Final = 6
MAX_ITEMS: Final = 256
MAX_TEXT: Final = 500
MAX_WHOLE: Final = 2**63


def cleaned(value: object, depth: int = MAX_DEPTH) -> Any:
    """`value` without what would not fit; None in place of what no reader could take."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return printable(value[:MAX_TEXT])
    if isinstance(value, int):
        return value if abs(value) < MAX_WHOLE else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth and isinstance(value, Mapping):
        items = islice(value.items(), MAX_ITEMS)
        return {printable(str(key)[:MAX_TEXT]): cleaned(item, depth - 1) for key, item in items}
    if depth and isinstance(value, list):
        return [cleaned(item, depth - 1) for item in value[:MAX_ITEMS]]
    return None
