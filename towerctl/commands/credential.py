"""`credential`: the exec plugin that kubeconfigs name. Its errors are one sentence, since kubectl prints them."""

from __future__ import annotations

import json
import sys

import click

from towerctl.context import Ctl, pass_ctl
from towerctl.lazy import Command
from towerctl.output import say
from towerctl.types import Cluster, User, group_option, needs_user


@click.command(cls=Command)
@click.argument("cluster", type=Cluster())
@click.option("--as", "user", type=User(), metavar="NAME", help="The caller's name; the host's admin when left out.")
@group_option()
@click.option(
    "--ca",
    default="",
    metavar="FINGERPRINT",
    help="The CA that the kubeconfig trusts: certificates of an earlier tower at the same socket are not used.",
)
@click.option(
    "--refresh",
    is_flag=True,
    help="Make a new certificate even if the kept one is still good, and forget all others of CLUSTER.",
)
@pass_ctl
def credential(ctl: Ctl, cluster: str, user: str | None, groups: tuple[str, ...], ca: str, refresh: bool) -> None:
    """Print an ExecCredential for CLUSTER, as kubectl asks for it (client.authentication.k8s.io/v1).

    Key and certificate are kept in the user's cache directory (0600) and renewed at two thirds of their life.
    """
    from towerctl import credentials

    needs_user(user, groups)
    made = credentials.credential(ctl.client(), cluster, user=user, groups=groups, ca=ca, refresh=refresh)
    if refresh and sys.stdout.isatty():  # a person, who is told to type this: the key is not for the screen
        say(f"A new certificate for {cluster} is kept, and used from the next call on.")
        return
    click.echo(json.dumps(made))
