"""`revoke`: takes trust away at once and for good. What was revoked stays revoked; to return, one enrols anew."""

from __future__ import annotations

import re
from typing import Any, Final

import click

from towerctl.client import path_of
from towerctl.context import Ctl, pass_ctl
from towerctl.lazy import Command, KindGroup
from towerctl.output import Object, output_option, print_document, say, warn_unheard
from towerctl.types import Cluster, Existing, Listed, User
from towerctl.words import PROGRAM

_OUTPUT: Final = output_option("table", "json", "yaml", "name")


class _Serial(click.ParamType[str]):
    """A certificate's serial number in hexadecimal, as openssl prints it, with or without colons."""

    name = "serial"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).lower().replace(":", "").removeprefix("0x").removeprefix("serial=")
        if not re.fullmatch(r"[0-9a-f]{1,40}", text):
            self.fail(
                f"{str(value)[:80]!r} is not a serial number: up to 40 hexadecimal digits, "
                "as `openssl x509 -noout -serial` prints it",
                param,
                ctx,
            )
        return text


@click.command("token", cls=Command)
@click.argument("token_id", metavar="ID", type=Listed("tokens"))
@_OUTPUT
@pass_ctl
def token(ctl: Ctl, token_id: str, output: str) -> None:
    """Revoke the enrolment token ID: nobody can join with it any more."""
    from towerctl.lookup import one_of
    from towerctl.resources import TOKENS

    client = ctl.client()
    found = one_of(client, TOKENS, token_id)
    answer = client.delete(path_of("tokens", token_id))
    _print(answer, output, f"token/{token_id}", f"token {token_id} of cluster {found.get('cluster')} revoked")


@click.command("agent", cls=Command)
@click.argument("name", type=Existing("agent"))
@click.option("--cluster", type=Cluster(), help="Its cluster, where two clusters have an agent of that name.")
@_OUTPUT
@pass_ctl
def agent(ctl: Ctl, name: str, cluster: str | None, output: str) -> None:
    """Revoke the agent NAME: its tunnels are closed at once and it cannot return with this identity."""
    from towerctl.lookup import one_of
    from towerctl.resources import AGENTS

    client = ctl.client()
    found = one_of(client, AGENTS, name, cluster=cluster)
    owner = str(found.get("cluster"))
    answer = client.post(path_of("agents", owner, name, "revoke"))
    tunnels = found.get("tunnels") or 0
    _print(answer, output, f"agent/{name}", f"agent {name} of cluster {owner} revoked; {tunnels} of its tunnels closed")


@click.command("caller", cls=Command)
@click.argument("user", type=User())
@_OUTPUT
@pass_ctl
def caller(ctl: Ctl, user: str, output: str) -> None:
    """Revoke every certificate that was issued to USER so far, in all clusters of this host."""
    answer = ctl.client().post(path_of("callers", user, "revoke"))
    _print(answer, output, f"caller/{user}", f"caller {user} revoked: certificates issued until now are refused")
    say(f"Whoever may go on: `{PROGRAM} credential CLUSTER --refresh`, or a new `{PROGRAM} kubeconfig --embed`.")


@click.command("certificate", cls=Command)
@click.argument("serial", type=_Serial())
@_OUTPUT
@pass_ctl
def certificate(ctl: Ctl, serial: str, output: str) -> None:
    """Revoke the one client certificate with the number SERIAL."""
    answer = ctl.client().post(path_of("certificates", serial, "revoke"))
    _print(answer, output, f"certificate/{serial}", f"certificate {serial} revoked")


def _print(answer: Object, output: str, name: str, sentence: str) -> None:
    warn_unheard(answer)
    if output in ("json", "yaml"):
        print_document(answer, output)
    else:
        click.echo(name if output == "name" else sentence)


revoke = KindGroup(
    "revoke",
    table={
        "token": (f"{__name__}:token", "Nobody can join with this token any more."),
        "agent": (f"{__name__}:agent", "Close the tunnels of an agent and never let it in again."),
        "caller": (f"{__name__}:caller", "Refuse every certificate issued to a caller until now."),
        "certificate": (f"{__name__}:certificate", "Refuse one client certificate by its serial number."),
    },
    help="Revoke a token, an agent, a caller or a certificate.",
    no_args_is_help=True,
    callback=lambda: None,
)
