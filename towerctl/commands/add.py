"""`add cluster`: allocates a member's place on this host and prints the one command that joins it."""

from __future__ import annotations

from typing import Any

import click

from protocol import defaults
from towerctl.context import Ctl, pass_ctl
from towerctl.lazy import Command, KindGroup
from towerctl.output import output_option, print_document, say
from towerctl.types import Duration, Name
from towerctl.words import PROGRAM


@click.command(
    "cluster",
    cls=Command,
    epilog="The token goes to the standard input of that command, never to its arguments, where `ps` would show it.",
)
@click.argument("name", type=Name())
@click.option(
    "--ttl",
    type=Duration(minimum=1),
    help=f"How long the token can be used, such as 30m. [default: {defaults.TOKEN_LIFETIME / 3600:g}h]",
)
@click.option("--uses", type=click.IntRange(1), help="How many agents may join with it. [default: 1]")
@click.option(
    "--serving-name",
    "serving_names",
    multiple=True,
    metavar="NAME",
    help="A further name or address for this cluster's serving certificate (repeatable).",
)
@click.option("--no-join", is_flag=True, help="Only add the record: no token, no command; so does `-o name`.")
@click.option("--wait", type=Duration(), metavar="DURATION", help="Then wait until the cluster is Ready, such as 2m.")
@output_option("table", "json", "yaml", "name")
@pass_ctl
def cluster(
    ctl: Ctl,
    name: str,
    ttl: float | None,
    uses: int | None,
    serving_names: tuple[str, ...],
    no_join: bool,
    wait: float | None,
    output: str,
) -> None:
    """Add cluster NAME: allocate its port and print the one command that joins it."""
    from towerctl.joining import print_join
    from towerctl.waiting import until_ready

    no_join = no_join or output == "name"  # a token that is shown nowhere would lie about until it expires
    if no_join and (ttl is not None or uses is not None):
        raise click.UsageError("--no-join and `-o name` make no token: leave --ttl and --uses out")
    body: dict[str, Any] = {"name": name}
    body |= {key: value for key, value in (("ttl", ttl), ("uses", uses)) if value is not None}
    body |= {"serving_names": list(serving_names)} if serving_names else {}
    body |= {"join": False} if no_join else {}
    client = ctl.client()
    added = client.post("/v1/clusters", body)
    ports = ", ".join(f"{port} ({service})" for service, port in sorted((added.get("ports") or {}).items()))
    say(f"Cluster {name} added; callers will reach it at port {ports or '-'}.")
    if no_join:
        say(f"When an agent is to join: `{PROGRAM} create token {name}`")
    if output == "name":
        click.echo(f"cluster/{name}")
    elif join := added.get("join"):
        print_join(join, output=output, document=added)
        say(f"Or apply `{PROGRAM} manifest {name}` in the member. Then: `{PROGRAM} get clusters {name}`")
    elif output in ("json", "yaml"):
        print_document(added, output)
    if wait is not None:
        until_ready(client, name, limit=wait)


add = KindGroup(
    "add",
    table={"cluster": (f"{__name__}:cluster", "Add a cluster and print the one command that joins it.")},
    help="Add a cluster and print the one command that joins it.",
    no_args_is_help=True,
    callback=lambda: None,
)
