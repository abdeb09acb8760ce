"""The entry points of `towerctl` and `kubectl-tower`: every failure is one sentence with its code and its mend."""

from __future__ import annotations

import sys
from typing import NoReturn

import click
from click.shell_completion import ShellComplete

from daemon.commandline import run_line
from daemon.faults import TowerError
from daemon.redact import redact_text
from towerctl.root import COMPLETE_VARIABLE, cli
from towerctl.words import PROGRAM


def main() -> NoReturn:
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Runs one command line; returns its exit code."""
    return run_line(cli, args, program=PROGRAM, complete_var=COMPLETE_VARIABLE, told=_told)


def _told(error: TowerError) -> int:
    click.echo(sentence(error), err=True)
    return error.exit_code


def complete() -> NoReturn:
    """`kubectl_complete-tower`: what kubectl asks for after `kubectl tower ... <TAB>`, the unfinished word last.

    It prints one candidate a line and a last line `:DIRECTIVE` (cobra's: 4 keeps the shell from offering files).
    """
    words = sys.argv[1:] or [""]
    found = ShellComplete(cli, {}, PROGRAM, COMPLETE_VARIABLE).get_completions(words[:-1], words[-1])
    for item in found:
        if item.type == "plain":
            click.echo(item.value)
    click.echo(":0" if any(item.type in ("file", "dir") for item in found) else ":4")
    sys.exit(0)


def sentence(error: TowerError) -> str:
    """`error: what, where, why`, then what to do, then where to read more."""
    lines = [f"error: {error.message}"]
    if error.mend:
        lines.append(f"  mend: {error.mend}")
    if error.code not in ("", "TWR601"):
        lines.append(f"  code: {error.code} (`{PROGRAM} explain {error.code}`)")
    return redact_text("\n".join(lines))
