"""Structured logs: one line an event, JSON unless people watch, and no secret in any of them.

Events have fixed names in the code (`tunnel-opened`), everything that varies is a key (`cluster`, `tunnel`,
`connection`). The standard library's loggers end in the same chain, so that a library's line is redacted and rendered
like ours. A log that cannot be written (full disk, closed pipe) never stops the
work: lines are counted as lost, and the next one that gets through says how many.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal, TextIO

from daemon.redact import redact

# structlog loads it where it lies about, 4 MiB and a tenth of a second at every start; nothing is drawn with it.
sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
import structlog  # noqa: E402

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]
LEVELS: Final[dict[str, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
# Their debug lines would show what callers send.
_QUIET: Final = ("asyncio", "asyncssh", "websockets", "urllib3", "kubernetes")


class _Lines:
    """Writes finished lines; keeps count of those that were lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lost = 0

    def msg(self, line: str) -> None:
        lost = f'{{"event": "log-lines-lost", "level": "warning", "count": {self._lost}}}\n' if self._lost else ""
        try:
            self._stream.write(f"{lost}{line}\n")
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._lost += 1
        else:
            self._lost = 0

    debug = info = warning = error = critical = exception = msg


class _Bridge(logging.Handler):
    """Hands a record of the standard library to the structlog chain."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # a library's format string and arguments do not fit
            text = str(record.msg)
        extra = {"exc_info": record.exc_info} if record.exc_info else {}
        get_logger(record.name).log(min(record.levelno, logging.ERROR), "library", text=text, **extra)


def _redacted(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: redact(value, name=key) for key, value in event.items()}


# A terminal obeys these (C1 too), or shows what follows where it does not stand. Of them JSON escapes C0 alone.
_STEERING: Final = {
    code: f"\\u{code:04x}"
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
}
_EXCEPTION: Final = _STEERING.copy()
del _EXCEPTION[ord("\n")], _EXCEPTION[ord("\t")]


def _harmless(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """For people: what a text carries stays in its line and steers no terminal. Containers are shown by `repr`."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = value.translate(_EXCEPTION if key == "exception" else _STEERING)
    return event


def _escaped(_logger: Any, _method: str, line: str) -> str:
    return line if line.isascii() else line.translate(_STEERING)


def configure(*, level: Level = "info", style: Format = "auto", stream: TextIO | None = None) -> None:
    """Sets up logging for the whole process; standard error is the default, so that stdout stays for data."""
    out = stream if stream is not None else sys.stderr
    console = style == "console" or (style == "auto" and out.isatty())
    shared: list[structlog.types.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
        _redacted,
    ]
    if console:
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb" or not out.isatty()
        render: structlog.types.Processor = structlog.dev.ConsoleRenderer(colors=not plain, timestamp_key="time")
        ends: list[structlog.types.Processor] = [_harmless, render]
    else:
        ends = [structlog.processors.JSONRenderer(ensure_ascii=False), _escaped]  # type: ignore[list-item]
    structlog.configure(
        processors=[*shared, *ends],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_names: lines,
        cache_logger_on_first_use=False,
    )
    lines = _Lines(out)
    root = logging.getLogger()
    root.handlers[:] = [_Bridge()]
    root.setLevel(LEVELS[level])
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(LEVELS[level], logging.WARNING))
    logging.captureWarnings(True)


def get_logger(room: str) -> Any:
    """A logger whose lines carry `room` (the dotted module name)."""
    return structlog.get_logger(room=room)
