"""`forward`: a service that the member's owner declared, on a port of this machine."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem

from towerctl.context import Ctl, pass_ctl
from towerctl.lazy import Command
from towerctl.output import say
from towerctl.types import Cluster, Name, services_of


class _Local(click.ParamType[tuple[str, int]]):
    """PORT or ADDRESS:PORT; port 0 lets one be chosen."""

    name = "local"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        from daemon.units import split_address

        text = str(value)
        try:
            address, port = split_address(text if ":" in text else f"127.0.0.1:{text}")
        except ValueError:
            address, port = "", 0
        if not address:
            self.fail(f"{value!r} is not a local address: use PORT or ADDRESS:PORT, 0 to 65535", param, ctx)
        return address, port


class _Service(Name):
    """Completed from what the cluster, named before it, declares."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        names = services_of(ctx, str(ctx.params.get("cluster")))
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.command(cls=Command, epilog="Example: towerctl forward edge-1 grafana 3000")
@click.argument("cluster", type=Cluster())
@click.argument("service", type=_Service("service"))
@click.argument("local", type=_Local(), default="0", metavar="[LOCAL]")
@pass_ctl
def forward(ctl: Ctl, cluster: str, service: str, local: tuple[str, int]) -> None:
    """Listen on LOCAL (a free port of 127.0.0.1 when left out) and relay to SERVICE of CLUSTER, until Ctrl-C.

    Only services that the member's owner declared in the agent's configuration can be reached.
    """
    import asyncio

    from towerctl.lookup import suggesting
    from towerctl.relay import Forwarder, run

    address, port = local
    client = ctl.client()
    forwarder = Forwarder(client, cluster=cluster, service=service, say=say)

    def ready(listening: int) -> None:
        shown = f"[{address}]" if ":" in address else address
        click.echo(f"Forwarding from {shown}:{listening} -> {cluster}/{service}")
        if address not in ("127.0.0.1", "::1", "localhost"):
            say(f"Whoever reaches {shown}:{listening} reaches the service, without asking the tower.")

    with suggesting(client, cluster):
        asyncio.run(run(forwarder, address=address, port=port, ready=ready))
