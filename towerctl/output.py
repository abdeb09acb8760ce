"""Everything that goes to standard output: one object or many, as a table, JSON, YAML or names.

The exit code never depends on the format. JSON and YAML are the admin API's own objects, untouched, so that a script
and `curl` see the same. Diagnostics go to standard error through `say`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

from towerctl import table
from towerctl.table import Column

FORMATS: Final = ("table", "wide", "json", "yaml", "name")
Object = dict[str, Any]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object as people see it."""

    singular: str
    plural: str
    columns: Sequence[Column]
    name: Callable[[Object], str]

    def shown(self, output: str) -> list[Column]:
        return [column for column in self.columns if output == "wide" or not column.wide]


def output_option(*formats: str) -> Callable[[F], F]:
    """`-o`, with the formats that make sense for the command; the first is the default."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(formats),
        default=formats[0],
        show_default=True,
        help="How to print it.",
    )


def say(text: str) -> None:
    """A word to the person, on standard error: standard output is for data."""
    click.echo(text, err=True)


def print_document(document: Any, output: str) -> None:
    """JSON or YAML, indented."""
    click.echo(dump(document, output), nl=False)


def dump(document: Any, output: str) -> str:
    if output == "yaml":
        import yaml

        return yaml.safe_dump(document, sort_keys=False, default_flow_style=False, allow_unicode=True)
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def print_names(resource: Resource, items: Sequence[Object]) -> None:
    for item in items:
        click.echo(f"{resource.singular}/{resource.name(item)}")


def print_table(resource: Resource, items: Sequence[Object], *, output: str, headers: bool) -> list[int]:
    """Prints the table; returns the widths, so that rows that come later line up."""
    columns = resource.shown(output)
    rows = table.rows_of(columns, items)
    if headers and rows:
        rows.insert(0, [column.header for column in columns])
    if not rows:
        mend = " Add one: `towerctl add cluster NAME`" if resource.singular == "cluster" else ""
        say(f"No {resource.plural} found.{mend}")
        return [len(column.header) for column in columns]
    widths = table.widths_of(rows)
    for row in rows:
        click.echo(table.format_row(row, widths))
    return widths


def warn_stale(shown: Object) -> None:
    """Says on standard error what of it is not as of now."""
    if shown.get("stale"):
        say(f"warning: {shown['stale']}")


def warn_unheard(done: Object) -> None:
    """Says on standard error which servers of the host have not heard of what was done."""
    for each in done.get("unanswered") or ():
        say(f"warning: server {each.get('server')} has not heard of it yet, and looks every 10 s: {each.get('reason')}")


def print_list(resource: Resource, listing: Object, *, output: str, headers: bool) -> None:
    items = listing.get("items", [])
    warn_stale(listing)
    for each in listing.get("unanswered") or ():
        say(f"warning: the {resource.plural} of server {each.get('server')} are not shown: {each.get('reason')}")
    if output in ("json", "yaml"):
        print_document(listing, output)
    elif output == "name":
        print_names(resource, items)
    else:
        print_table(resource, items, output=output, headers=headers)


def print_one(resource: Resource, item: Object, *, output: str, headers: bool = True) -> None:
    warn_stale(item)
    if output in ("json", "yaml"):
        print_document(item, output)
    elif output == "name":
        print_names(resource, [item])
    else:
        print_table(resource, [item], output=output, headers=headers)
