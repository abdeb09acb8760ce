"""`delete cluster`: says what ends, asks a person, and refuses to guess where there is nobody to ask."""

from __future__ import annotations

import sys

import click

from towerctl.client import AdminClient, path_of
from towerctl.context import Ctl, pass_ctl
from towerctl.errors import usage
from towerctl.lazy import Command, LazyGroup
from towerctl.output import Object, output_option, print_document
from towerctl.types import Cluster


@click.command("cluster", cls=Command)
@click.argument("name", type=Cluster())
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@output_option("table", "json", "yaml", "name")
@pass_ctl
def cluster(ctl: Ctl, name: str, yes: bool, output: str) -> None:
    """Delete cluster NAME: close its tunnels, revoke its agents and tokens, give its ports back."""
    from towerctl.lookup import get_cluster, suggesting

    client = ctl.client()
    ends = _ends(client, get_cluster(client, name))
    if not yes:
        if not sys.stdin.isatty():
            raise usage(
                f"deleting cluster {name} {ends}, and there is nobody to ask", mend="say --yes if that is meant"
            )
        click.confirm(f"Deleting cluster {name} {ends}. Go on?", abort=True, err=True)
    with suggesting(client, name):
        deleted = client.delete(path_of("clusters", name))
    if output in ("json", "yaml"):
        print_document(deleted, output)
    elif output == "name":
        click.echo(f"cluster/{name}")
    else:
        click.echo(f"cluster {name} deleted: this {ends}")


def _ends(client: AdminClient, cluster: Object) -> str:
    name = str(cluster.get("name"))
    tunnels = cluster.get("tunnels") or 0
    streams = len(client.get("/v1/streams", {"cluster": name}).get("items", []))
    agents = len(cluster.get("agents") or [])
    ports = ", ".join(str(port) for port in sorted((cluster.get("ports") or {}).values()))
    return f"ends {_count(tunnels, 'tunnel')} and {_count(streams, 'stream')}, revokes {_count(agents, 'agent')}" + (
        f" and gives port {ports} back" if ports else ""
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


delete = LazyGroup(
    "delete",
    table={"cluster": (f"{__name__}:cluster", "Delete a cluster and all that belongs to it.")},
    help="Delete a cluster and all that belongs to it.",
    no_args_is_help=True,
    callback=lambda: None,
)
