"""`rotate`: the tower CA, in three steps, so that nothing that runs is cut."""

from __future__ import annotations

from typing import Final

import click

from towerctl.context import Ctl, pass_ctl
from towerctl.lazy import Command, LazyGroup
from towerctl.output import output_option, print_document

NEXT: Final = {
    "announced": "hand out kubeconfigs anew (`towerctl kubeconfig CLUSTER --merge --overwrite`): they trust "
    "both roots. Then `towerctl rotate authority switch`",
    "switched": "wait until callers use certificates of the new root (one day for the plugin's); then "
    "`towerctl rotate authority finish`",
}


@click.command(
    "authority",
    cls=Command,
    epilog="""\b
start   makes a new root; agents and new kubeconfigs trust both
switch  signs by the new root; agents fetch new certificates at once
finish  takes the old root away, with every certificate under it""",
)
@click.argument("step", type=click.Choice(["start", "switch", "finish"]))
@click.option("--force", is_flag=True, help="Also where agents lag behind: those have to join anew.")
@output_option("table", "json", "yaml")
@pass_ctl
def authority(ctl: Ctl, step: str, force: bool, output: str) -> None:
    """Take the next STEP in the rotation of the tower CA. No stream breaks; `describe authority` says how far it is."""
    made = ctl.client().post("/v1/authority/rotate", {"step": step, "force": force})
    if output != "table":
        print_document(made, output)
        return
    show(made)


def show(item: dict[str, object]) -> None:
    """How far a rotation is, and what comes next."""
    from towerctl import times
    from towerctl.table import printable

    click.echo(f"Host:    {printable(str(item.get('host')))}")
    click.echo(f"Phase:   {printable(str(item.get('phase')))}")
    roots = item.get("roots")
    for root in roots if isinstance(roots, list) else []:
        signs = "signs" if root.get("signs") else "trusted"
        click.echo(
            f"Root:    {signs:<8} sha256:{root.get('fingerprint')}, until {times.until(root.get('expires'))} from now"
        )
    waiting = item.get("waiting")
    names = [printable(str(name)) for name in waiting] if isinstance(waiting, list) else []
    if names:
        click.echo(f"Waiting: {', '.join(names)}")
    following = NEXT.get(str(item.get("phase")))
    if following:
        click.echo(f"Next:    {following}")


rotate = LazyGroup(
    "rotate",
    table={"authority": (f"{__name__}:authority", "The tower CA: start, switch, finish.")},
    help="Rotate the tower CA without a pause.",
    no_args_is_help=True,
    callback=lambda: None,
)
