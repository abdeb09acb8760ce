"""`--watch`: a line for each change that matters, first what is there, then what changes, until Ctrl-C.

Clusters are watched at the server. The other kinds come and go with every connection, so they are listed each second. A
row is printed again only when a column that is not a counter or an age has changed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Final

import click

from towerctl import table
from towerctl.client import AdminClient
from towerctl.errors import ServerUnreachable
from towerctl.output import Object, Resource, dump

INTERVAL: Final = 1.0
DELETED: Final = "Deleted"


def changes(client: AdminClient, resource: Resource, query: dict[str, str]) -> Iterator[tuple[bool, Object]]:
    """(deleted, object), first those that are there."""
    if resource.plural == "clusters":
        for event in client.watch("/v1/clusters", {**query, "watch": "1"}):
            if event.get("type") != "SYNCED":
                yield event.get("type") == "DELETED", event.get("object") or {}
        raise ServerUnreachable(
            f"the tower server at {client.label} ended the watch: it stops, or was stopped",
            mend="watch again once it is back: what changes until then is not shown",
        )
    known: dict[str, Object] = {}
    while True:
        now = {resource.name(item): item for item in client.get(f"/v1/{resource.plural}", query).get("items", [])}
        for item in now.values():
            yield False, item
        for name in known.keys() - now.keys():
            yield True, known[name]
        known = now
        time.sleep(INTERVAL)


def follow(
    client: AdminClient,
    resource: Resource,
    query: dict[str, str],
    *,
    name: str | None,
    output: str,
    headers: bool,
) -> None:
    """Prints changes until the person ends it; ServerUnreachable when the server does, since more may have changed."""
    printer = _Printer(resource, output=output, headers=headers)
    for deleted, item in changes(client, resource, query):
        if name is None or resource.name(item) == name:
            printer.show(item, deleted=deleted)


class _Printer:
    def __init__(self, resource: Resource, *, output: str, headers: bool) -> None:
        self._resource = resource
        self._output = output
        self._columns = resource.shown(output)
        self._widths = [len(column.header) for column in self._columns]
        self._last: dict[str, list[str]] = {}
        self._headers = headers

    def show(self, item: Object, *, deleted: bool) -> None:
        name = self._resource.name(item)
        stable = [column.value(item) for column in self._columns if not column.volatile]
        if not deleted and self._last.get(name) == stable:
            return
        self._last[name] = stable
        if deleted:
            del self._last[name]
        if self._output == "name":
            click.echo(f"{self._resource.singular}/{name}")
        elif self._output == "json":
            click.echo(json.dumps({"type": "DELETED" if deleted else "CURRENT", "object": item}, ensure_ascii=False))
        elif self._output == "yaml":
            click.echo("---\n" + dump(item, "yaml"), nl=False)
        else:
            self._row(item, deleted=deleted)

    def _row(self, item: Object, *, deleted: bool) -> None:
        row = table.rows_of(self._columns, [item])[0]
        if deleted:
            row = [
                row[0],
                *(
                    DELETED if column.header in ("REASON", "STATE") else cell
                    for column, cell in zip(self._columns[1:], row[1:], strict=True)
                ),
            ]
        self._widths = table.widths_of([row], self._widths)
        if self._headers:
            self._headers = False
            click.echo(table.format_row([column.header for column in self._columns], self._widths))
        click.echo(table.format_row(row, self._widths))
