from __future__ import annotations

import io
import sys

import pytest

from towerctl import table
from towerctl.table import Column

COLUMNS = (
    Column("NAME", lambda item: str(item["name"])),
    Column("READY", lambda item: str(item.get("ready", ""))),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(*items: dict[str, str]) -> list[str]:
    rows = [[column.header for column in COLUMNS], *table.rows_of(COLUMNS, items)]
    widths = table.widths_of(rows)
    return [table.format_row(row, widths) for row in rows]


def test_columns_line_up_without_borders_or_trailing_spaces() -> None:
    assert lines({"name": "edge-1", "ready": "True"}, {"name": "x"}) == [
        "NAME     READY",
        "edge-1   True",
        "x        -",
    ]


def test_no_colour_where_nobody_looks() -> None:
    assert "\x1b" not in "".join(lines({"name": "x", "ready": "False"}))


def test_colour_on_a_terminal_does_not_move_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert lines({"name": "x", "ready": "False"})[1] == "x      \x1b[31mFalse\x1b[0m"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colour_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    assert table.paint("False") == "False"


def test_a_member_cannot_steer_the_terminal() -> None:
    assert lines({"name": "\x1b[2Jx\n", "ready": "a\u202eb"})[1] == "?[2Jx?   a?b"
