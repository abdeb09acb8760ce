"""Tables as kubectl prints them: names first, three spaces between columns, no borders, words beside every colour."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

GAP: Final = "   "
COLOURS: Final = {
    "True": "green",
    "Connected": "green",
    "ok": "green",
    "False": "red",
    "FAIL": "red",
    "x": "red",
    "Unknown": "yellow",
    "warn": "yellow",
    "!": "yellow",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `volatile` values (ages, times, counters) do not make a row new under --watch."""

    header: str
    value: Callable[[dict[str, Any]], str]
    wide: bool = False
    volatile: bool = False


def printable(text: str) -> str:
    """Names and versions come from members: what could steer the terminal does not reach it."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def coloured() -> bool:
    """Whether standard output takes colour: a terminal, and NO_COLOR is not set (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(word: str) -> str:
    return click.style(word, fg=COLOURS[word]) if word in COLOURS and coloured() else word


def rows_of(columns: Sequence[Column], items: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [[printable(column.value(item)) or "-" for column in columns] for item in items]


def widths_of(rows: Sequence[Sequence[str]], at_least: Sequence[int] = ()) -> list[int]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [max(width, least) for width, least in zip(widths, at_least or [0] * len(widths), strict=True)]


def format_row(row: Sequence[str], widths: Sequence[int]) -> str:
    """One line; the last cell is not padded, so that no line ends in spaces."""
    cells = [_cell(cell) + " " * (width - len(cell)) for cell, width in zip(row[:-1], widths, strict=False)]
    return GAP.join([*cells, _cell(row[-1])])


def _cell(cell: str) -> str:
    """Names are lower-case: a cluster called `x` is no failure."""
    return paint(cell) if cell[:1].isupper() else cell
