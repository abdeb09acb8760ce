"""`create`: another enrolment token for a cluster that is there; and for Go agents, their token and a window."""

from __future__ import annotations

from pathlib import Path

import click

from protocol import defaults
from towerctl.client import path_of
from towerctl.context import Ctl, pass_ctl
from towerctl.lazy import Command, KindGroup
from towerctl.output import output_option
from towerctl.types import Cluster, Duration


@click.command("token", cls=Command)
@click.argument("cluster", type=Cluster())
@click.option(
    "--ttl",
    type=Duration(minimum=1),
    help=f"How long it can be used, such as 30m. [default: {defaults.TOKEN_LIFETIME / 3600:g}h]",
)
@click.option("--uses", type=click.IntRange(1), help="How many agents may join with it. [default: 1]")
@output_option("table", "json", "yaml", "name")
@pass_ctl
def token(ctl: Ctl, cluster: str, ttl: float | None, uses: int | None, output: str) -> None:
    """Create an enrolment token for CLUSTER and print the command that joins with it."""
    from towerctl.joining import print_join
    from towerctl.lookup import suggesting

    client = ctl.client()
    body = {key: value for key, value in (("ttl", ttl), ("uses", uses)) if value is not None}
    with suggesting(client, cluster):
        made = client.post(path_of("clusters", cluster, "tokens"), body)
    print_join(made, output=output, document=made)


@click.command("legacy-token", cls=Command)
@click.argument("cluster", type=Cluster())
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Take over the token that Go agents have already (- for standard input), in place of making one.",
)
@output_option("table", "json", "yaml")
@pass_ctl
def legacy_token(ctl: Ctl, cluster: str, token_file: Path | None, output: str) -> None:
    """Create the token by which Go Tower's agents register for CLUSTER. Agents with another one are closed."""
    from towerctl.files import read_text
    from towerctl.lookup import suggesting
    from towerctl.output import print_document, say

    body = {} if token_file is None else {"token": read_text(token_file, what="the token file").strip()}
    client = ctl.client()
    with suggesting(client, cluster):
        made = client.post(path_of("clusters", cluster, "legacy-token"), body)
    if output in ("json", "yaml"):
        print_document(made, output)
    elif token_file is not None:
        say(f"Go agents with that token may register for {cluster}")
    else:
        say(f"Go agents register for {cluster} with this token (it is not shown again):")
        click.echo(made.get("token"))


@click.command("legacy-window", cls=Command)
@click.argument("cluster", type=Cluster())
@click.option(
    "--ttl", type=Duration(minimum=1), help=f"How long it is open. [default: {defaults.LEGACY_WINDOW / 3600:g}h]"
)
@output_option("table", "json", "yaml")
@pass_ctl
def legacy_window(ctl: Ctl, cluster: str, ttl: float | None, output: str) -> None:
    """Let a Go agent register for CLUSTER beside its native agents, for the time of a move."""
    from towerctl.lookup import suggesting
    from towerctl.output import print_document

    client = ctl.client()
    with suggesting(client, cluster):
        made = client.post(path_of("clusters", cluster, "legacy-window"), {} if ttl is None else {"ttl": ttl})
    if output in ("json", "yaml"):
        print_document(made, output)
    else:
        click.echo(f"Go agents may register for {cluster} until {made.get('until')}")


create = KindGroup(
    "create",
    table={
        "token": (f"{__name__}:token", "Create an enrolment token for a cluster."),
        "legacy-token": (f"{__name__}:legacy_token", "Create the token of a cluster's Go agents."),
        "legacy-window": (f"{__name__}:legacy_window", "Let a Go agent register beside native ones."),
    },
    help="Create a token for agents of a cluster, or a window for a move.",
    no_args_is_help=True,
    callback=lambda: None,
)
