"""`completion`: the script that makes a shell complete verbs, options and the names of clusters."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from towerctl.lazy import Command
from towerctl.root import COMPLETE_VARIABLE, cli


@click.command(
    cls=Command,
    epilog="""\b
bash:  source <(towerctl completion bash)
zsh:   source <(towerctl completion zsh)
fish:  towerctl completion fish | source""",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL. Put its line into the start-up file of the shell."""
    found = get_completion_class(shell)
    assert found is not None  # the three are click's own
    script = found(cli, {}, "towerctl", COMPLETE_VARIABLE)
    click.echo(script.source_template % script.source_vars())
