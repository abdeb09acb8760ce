"""`completion`: the script that makes a shell complete verbs, options and the names of clusters."""

from __future__ import annotations

import click

from daemon.commandline import SHELLS, completion_script
from towerctl.lazy import Command
from towerctl.root import COMPLETE_VARIABLE, cli


@click.command(
    cls=Command,
    epilog="""\b
bash:  source <(towerctl completion bash)
zsh:   source <(towerctl completion zsh)
fish:  towerctl completion fish | source""",
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script of SHELL. Put its line into the start-up file of the shell."""
    click.echo(completion_script(cli, shell, program="towerctl", complete_var=COMPLETE_VARIABLE))
