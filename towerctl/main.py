"""The entry point of `towerctl` and `kubectl-tower`: runs a command and turns what ended it into an exit code.

Every failure is one sentence with its code and its mend on standard error; a traceback means a defect in this program.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from typing import Final, NoReturn

import click
from click.shell_completion import ShellComplete

from daemon.faults import EXIT_FAILED, EXIT_USAGE, TowerError
from daemon.redact import redact_text
from towerctl.root import COMPLETE_VARIABLE, cli
from towerctl.words import PROGRAM

_OUTPUT_FAULTS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main() -> NoReturn:
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Runs one command line; returns its exit code."""
    try:
        result = cli.main(args=args, prog_name=PROGRAM, standalone_mode=False, complete_var=COMPLETE_VARIABLE)
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        click.echo(redact_text(said.getvalue()), err=True, nl=False)  # a token may stand where none belongs
        return EXIT_USAGE if isinstance(error, click.UsageError) else EXIT_FAILED
    except (click.Abort, KeyboardInterrupt):
        click.echo("", err=True)
        return 128 + signal.SIGINT
    except TowerError as error:
        click.echo(sentence(error), err=True)
        return error.exit_code
    except BrokenPipeError:  # `| head` has read enough
        _drop_output()
        return EXIT_FAILED
    except OSError as error:
        if error.errno not in _OUTPUT_FAULTS:
            raise
        _drop_output()
        why = f"the output could not be written: {error.strerror}"
        click.echo(f"error: {why}\n  mend: make room where it goes", err=True)
        return EXIT_FAILED
    return result if isinstance(result, int) else 0


def _drop_output() -> None:
    """What is still in its buffer would be written once more at the end, and that failure told by Python."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
