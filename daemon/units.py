"""Sizes, durations and addresses as people write them ("256KiB", "40s", "[::1]:9443"), and ages as kubectl prints them.

Reading and writing stand together so that what one prints the other reads. pydantic is imported only where a model is
built: the command line reads durations too, and every Tab in a shell would pay for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Final

_SIZES: Final = {
    "": 1,
    "b": 1,
    "k": 1000,
    "kb": 1000,
    "m": 1000**2,
    "mb": 1000**2,
    "g": 1000**3,
    "gb": 1000**3,
    "ki": 1024,
    "kib": 1024,
    "mi": 1024**2,
    "mib": 1024**2,
    "gi": 1024**3,
    "gib": 1024**3,
}
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")
MAX_SIZE: Final = 1 << 60
MAX_DURATION: Final = 36500 * 86400.0  # the system's clocks and timers end at 292 years


def parse_size(text: Any) -> int:
    """Bytes of "256KiB", "48Mi", "1MB" or a bare number. Raises ValueError."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        if not 0 <= text < float("inf") or text != int(text):
            raise ValueError("a size is a whole, non-negative number of bytes")
        size: float = text
    else:
        found = _SIZE.fullmatch(text) if isinstance(text, str) else None
        factor = _SIZES.get(found[2].lower()) if found else None
        if found is None or factor is None:
            raise ValueError('a size is a number with a unit, such as "256KiB", "48MiB" or "1GB"')
        size = float(found[1]) * factor
    if size > MAX_SIZE:
        raise ValueError(f"a size is at most {MAX_SIZE >> 30}GiB")
    return int(size)


def parse_duration(text: Any) -> float:
    """Seconds of "40s", "1h30m", "200ms", "7d" or a bare number of seconds. Raises ValueError."""
    seconds = _seconds(text.strip()) if isinstance(text, str) else text
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < float("inf"):
        raise ValueError('a duration is a number with a unit, such as "200ms", "40s", "5m", "24h" or "7d"')
    if seconds > MAX_DURATION:
        raise ValueError(f"a duration is at most {MAX_DURATION / 86400:.0f}d")
    return float(seconds)


def _seconds(text: str) -> float | None:
    """None for what is no duration."""
    if _NUMBER.fullmatch(text):
        return float(text)
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def spell_size(count: int) -> str:
    """What `parse_size` reads as exactly this many bytes: 48MiB, 1GB, 1025B."""
    for unit in ("GiB", "GB", "MiB", "MB", "KiB", "kB"):
        if count and count % _SIZES[unit.lower()] == 0:
            return f"{count // _SIZES[unit.lower()]}{unit}"
    return f"{count}B"


def spell_duration(seconds: float) -> str:
    """What `parse_duration` reads as exactly this many seconds: 1h, 40s, 500ms, 0.0125s."""
    for unit, factor in reversed(_SECONDS.items()):
        text = f"{round(seconds / factor)}{unit}"
        if seconds and parse_duration(text) == seconds:
            return text
    return f"{Decimal(repr(seconds)).normalize():f}s"


@dataclass(frozen=True, slots=True)
class _ReadBy:
    """Makes pydantic read a field with `parse` before it checks its type; `spell` writes what that reads."""

    parse: Callable[[Any], Any]
    spell: Callable[[Any], str] | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(self.parse, handler(source))


def spelled(value: Any, metadata: Iterable[object]) -> Any:
    """A field's value with its unit, where its type (`metadata` of the annotation) has one."""
    for each in metadata:
        if isinstance(each, _ReadBy) and each.spell is not None:
            return each.spell(value)
    return value


Size = Annotated[int, _ReadBy(parse_size, spell_size)]
"""A field in bytes that reads "256KiB"."""
Duration = Annotated[float, _ReadBy(parse_duration, spell_duration)]
"""A field in seconds that reads "40s"."""


def format_age(seconds: float | None) -> str:
    """An age as kubectl prints it: 45s, 12m, 3h5m, 2d4h, 41d, 3y; `-` where there is none."""
    if seconds is None:
        return "-"
    left = max(0, int(seconds))
    if left < 120:
        return f"{left}s"
    if left < 600:
        return _two(left, 60, "m", 1, "s")
    if left < 3 * 3600:
        return f"{left // 60}m"
    if left < 8 * 3600:
        return _two(left, 3600, "h", 60, "m")
    if left < 2 * 86400:
        return f"{left // 3600}h"
    if left < 8 * 86400:
        return _two(left, 86400, "d", 3600, "h")
    if left < 2 * 365 * 86400:
        return f"{left // 86400}d"
    return _two(left, 365 * 86400, "y", 86400, "d")


def _two(left: int, big: int, big_unit: str, small: int, small_unit: str) -> str:
    rest = left % big // small
    return f"{left // big}{big_unit}" + (f"{rest}{small_unit}" if rest else "")


def format_duration(seconds: float | None) -> str:
    """A measured time: 850us, 31ms, 1.2s, 12m; `-` where there is none."""
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f}us"
    if seconds < 0.01:
        return f"{seconds * 1e3:.1f}ms"
    if seconds < 1:
        return f"{seconds * 1e3:.0f}ms"
    if seconds < 120:
        return f"{seconds:.3g}s"
    return format_age(seconds)


def format_count(number: int, what: str) -> str:
    """`1 tunnel`, `2 tunnels`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def format_bytes(count: float | None) -> str:
    """A size: 0, 512, 1.1Ki, 48Mi, 2.0Gi; `-` where there is none."""
    if count is None:
        return "-"
    for unit in ("", "Ki", "Mi", "Gi"):
        if count < 1024 or unit == "Gi":
            break
        count /= 1024
    if not unit:
        return f"{count:.0f}"
    return f"{count:.1f}{unit}" if count < 10 else f"{count:.0f}{unit}"


def split_address(text: Any, *, listener: bool = True) -> tuple[str, int]:
    """`host:port` or `[v6]:port` as a pair. Raises ValueError.

    Args:
        listener: whether `:port` (all addresses, host "") and port 0 (any free one) make sense.
    """
    host, colon, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    bare = host.removeprefix("[").removesuffix("]")
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1
    least = 0 if listener else 1
    if not colon or not least <= number <= 65535 or (":" in bare) != (host != bare) or not (bare or listener):
        forms = "HOST:PORT, [IPV6]:PORT or :PORT" if listener else "HOST:PORT such as grafana.monitoring:3000"
        raise ValueError(f"must be {forms}, not {text!r}")
    try:
        bare.encode("idna")  # as whoever looks it up does, for whom it would be a defect
    except UnicodeError as error:
        raise ValueError(f"{bare[:80]!r} is no host: {error}") from None
    return bare, number


def _checked_listener(text: Any) -> Any:
    split_address(text)
    return text


Listener = Annotated[str, _ReadBy(_checked_listener)]
"""A field with the address that something listens on."""
