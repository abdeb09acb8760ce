"""`version`: of this command, and of the server where one answers."""

from __future__ import annotations

import importlib.metadata

import click

from daemon.faults import TowerError
from towerctl.context import Ctl, pass_ctl
from towerctl.lazy import Command
from towerctl.output import Object, output_option, print_document


@click.command(cls=Command)
@click.option("--client", "client_only", is_flag=True, help="Do not ask the server.")
@output_option("table", "json", "yaml")
@pass_ctl
def version(ctl: Ctl, client_only: bool, output: str) -> None:
    """Print the versions of this command and of the server."""
    versions: Object = {"apiVersion": "tower/v1", "kind": "Version"}
    versions |= {"client": importlib.metadata.version("tower-tunnel"), "server": None, "host": None}
    failure: TowerError | None = None
    if not client_only:
        try:
            info = ctl.client().get("/v1/info")
            versions |= {"server": info.get("version"), "host": info.get("host")}
        except TowerError as error:
            failure = error
    if output != "table":
        print_document(versions, output)
    else:
        click.echo(f"Client: {versions['client']}")
        if versions["server"]:
            click.echo(f"Server: {versions['server']} (host {versions['host']})")
    if failure is not None:
        raise failure
