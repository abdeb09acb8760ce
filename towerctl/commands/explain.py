"""`explain`: the table of faults, offline, because it is read when nothing else works."""

from __future__ import annotations

import difflib
import re
from dataclasses import asdict

import click

from daemon.faults import FAULTS, Fault, TowerError
from towerctl.lazy import Command
from towerctl.output import Object, output_option, print_document
from towerctl.table import format_row, widths_of
from towerctl.types import FaultCode


@click.command(cls=Command)
@click.argument("code", required=False, type=FaultCode())
@output_option("table", "json", "yaml")
def explain(code: str | None, output: str) -> None:
    """Say what CODE means, what causes it and how to mend it. Needs no server.

    Without CODE all of them are listed, with TWR2xx a family.
    """
    if code is None or re.fullmatch("(TWR)?[1-9]XX", code.strip()):
        _list(output, family=(code or "").strip().rstrip("X").removeprefix("TWR"))
        return
    entry = _find(code)
    if output != "table":
        print_document(_document(entry), output)
        return
    click.echo(f"{entry.code}: {entry.title}")
    for word, text in (("Meaning", entry.meaning), ("Cause", entry.cause), ("Mend", entry.mend)):
        click.echo(f"{word}:".ljust(10) + text)
    click.echo(f"HTTP:     {entry.http_status}   Reason: {entry.reason}")


def _list(output: str, *, family: str) -> None:
    entries = [entry for entry in FAULTS.values() if entry.code.startswith(f"TWR{family}")]
    if not entries:
        raise TowerError("TWR609", f"there is no fault of the family TWR{family}xx")
    if output != "table":
        items = [_document(entry) for entry in entries]
        print_document({"apiVersion": "tower/v1", "kind": "FaultList", "items": items}, output)
        return
    rows = [["CODE", "REASON", "TITLE"], *([entry.code, entry.reason, entry.title] for entry in entries)]
    widths = widths_of(rows)
    for row in rows:
        click.echo(format_row(row, widths))


def _document(entry: Fault) -> Object:
    return {"apiVersion": "tower/v1", "kind": "Fault", **asdict(entry)}


def _find(code: str) -> Fault:
    """The entry of `TWR201`, `twr201` or `201`."""
    wanted = code.strip().upper()
    if re.fullmatch(r"[0-9]{3}", wanted):
        wanted = f"TWR{wanted}"
    if wanted in FAULTS:
        return FAULTS[wanted]
    close = difflib.get_close_matches(wanted, FAULTS, n=3, cutoff=0.8)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    raise TowerError("TWR609", f"there is no fault code {code[:40]!r}", mend=f"{hint}{FAULTS['TWR609'].mend}")
