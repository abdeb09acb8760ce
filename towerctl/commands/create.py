"""`create token`: another enrolment token for a cluster that is there."""

from __future__ import annotations

import click

from protocol import defaults
from towerctl.client import path_of
from towerctl.context import Ctl, pass_ctl
from towerctl.lazy import Command, LazyGroup
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


create = LazyGroup(
    "create",
    table={"token": (f"{__name__}:token", "Create an enrolment token for a cluster.")},
    help="Create an enrolment token for a cluster.",
    no_args_is_help=True,
    callback=lambda: None,
)
