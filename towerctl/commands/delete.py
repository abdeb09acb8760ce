"""`delete`: of a cluster it says what ends, asks a person, and refuses to guess where there is nobody to ask."""

from __future__ import annotations

import shlex
import sys

import click

from daemon.faults import EXIT_FAILED, TowerError
from daemon.units import format_count
from towerctl.client import AdminClient, path_of
from towerctl.context import Ctl, pass_ctl
from towerctl.errors import usage
from towerctl.lazy import Command, KindGroup
from towerctl.output import Object, output_option, print_document, say, warn_unheard
from towerctl.types import Cluster


@click.command("cluster", cls=Command)
@click.argument("name", type=Cluster())
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@output_option("table", "json", "yaml", "name")
@pass_ctl
def cluster(ctl: Ctl, name: str, yes: bool, output: str) -> int:
    """Delete cluster NAME: close its tunnels, revoke its agents and tokens, give its ports back."""
    from towerctl.lookup import get_cluster, suggesting

    client = ctl.client()
    ends = _ends(client, get_cluster(client, name))
    if not yes:
        if not sys.stdin.isatty():
            raise usage(
                f"deleting cluster {name} {ends}, and there is nobody to ask", mend="say --yes if that is meant"
            )
        if not click.confirm(f"Deleting cluster {name} {ends}. Go on?", err=True):
            say(f"Not confirmed: cluster {name} stays as it is.")
            return EXIT_FAILED
    with suggesting(client, name):
        deleted = client.delete(path_of("clusters", name))
    warn_unheard(deleted)
    if output in ("json", "yaml"):
        print_document(deleted, output)
    elif output == "name":
        click.echo(f"cluster/{name}")
    else:
        click.echo(f"cluster {name} deleted: this {ends}")
    _say_what_kubectl_keeps(deleted)
    return 0


@click.command("legacy-token", cls=Command)
@click.argument("cluster", type=Cluster())
@pass_ctl
def legacy_token(ctl: Ctl, cluster: str) -> None:
    """Take the token of CLUSTER's Go agents away: they are closed and cannot come back."""
    from towerctl.lookup import suggesting

    client = ctl.client()
    with suggesting(client, cluster):
        done = client.delete(path_of("clusters", cluster, "legacy-token"))
    click.echo(
        f"cluster {cluster} takes no Go agents any more: {format_count(done.get('closed') or 0, 'tunnel')} closed"
    )


@click.command("legacy-window", cls=Command)
@click.argument("cluster", type=Cluster())
@pass_ctl
def legacy_window(ctl: Ctl, cluster: str) -> None:
    """Close the window of CLUSTER: no Go agent registers beside its native ones any more."""
    from towerctl.lookup import suggesting

    client = ctl.client()
    with suggesting(client, cluster):
        client.delete(path_of("clusters", cluster, "legacy-window"))
    click.echo(f"the window of cluster {cluster} is closed")


def _ends(client: AdminClient, cluster: Object) -> str:
    name = str(cluster.get("name"))
    tunnels = cluster.get("tunnels") or 0
    streams = len(client.get("/v1/streams", {"cluster": name}).get("items", []))
    agents = len(cluster.get("agents") or [])
    ports = ", ".join(str(port) for port in sorted((cluster.get("ports") or {}).values()))
    ends = f"ends {format_count(tunnels, 'tunnel')} and {format_count(streams, 'stream')}"
    return f"{ends}, revokes {format_count(agents, 'agent')}" + (f" and gives port {ports} back" if ports else "")


def _say_what_kubectl_keeps(deleted: Object) -> None:
    """The file is kubectl's, and others write to it too: what it holds of the cluster is named, and stays."""
    from certs import kubeconfig as files
    from certs.errors import KubeconfigError
    from towerctl.files import kubectl_files

    try:
        paths = kubectl_files()
    except TowerError:
        return  # who has no home has no such file
    for path in paths:
        try:
            config = files.read(path)
        except KubeconfigError:
            continue  # there is none, or none that kubectl could read: nothing in it leads to the cluster
        server, verified = (str(deleted.get(key)) for key in ("server", "tls_server_name"))
        if entries := files.entries_for(config, server=server, tls_server_name=verified):
            say(f"{path} still has entries for it; to take them away:")
            for kind, entry in entries:
                say(f"  {shlex.join(['kubectl', '--kubeconfig', str(path), 'config', f'delete-{kind}', entry])}")


delete = KindGroup(
    "delete",
    table={
        "cluster": (f"{__name__}:cluster", "Delete a cluster and all that belongs to it."),
        "legacy-token": (f"{__name__}:legacy_token", "Take no Go agents of a cluster any more."),
        "legacy-window": (f"{__name__}:legacy_window", "Close the window for a move."),
    },
    help="Delete a cluster and all that belongs to it, or what lets Go agents in.",
    no_args_is_help=True,
    callback=lambda: None,
)
