"""One command line from its words to its exit code, alike for all programs.

Every failure is a message on standard error; a traceback means a defect in this program.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Final

import click

from daemon.faults import EXIT_FAILED, EXIT_USAGE, TowerError
from daemon.redact import redact_text

FAIL_ON: Final = click.option(
    "--fail-on",
    type=click.Choice(["failure", "warning"]),
    default="failure",
    show_default=True,
    help="What exit code 1 is for: failures alone, or warnings too.",
)
"""Of the two commands that check."""
SHELLS: Final = ("bash", "zsh", "fish")
_OUTPUT_FAULTS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def run_line(
    cli: click.Command, args: list[str], *, program: str, complete_var: str, told: Callable[[TowerError], int]
) -> int:
    """Runs it; `told` says what a TowerError is and gives its exit code. Other exceptions are defects, and pass."""
    _stand_in_for_closed_streams()
    try:
        result = cli.main(args=args, prog_name=program, standalone_mode=False, complete_var=complete_var)
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        click.echo(redact_text(said.getvalue()), err=True, nl=False)  # a token may stand where none belongs
        return EXIT_USAGE if isinstance(error, click.UsageError) else EXIT_FAILED
    except (click.Abort, KeyboardInterrupt):
        click.echo("", err=True)
        return 128 + signal.SIGINT
    except TowerError as error:
        return told(error)
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


def completion_script(cli: click.Command, shell: str, *, program: str, complete_var: str) -> str:
    """What makes a shell complete `program`: click's, but fish shows descriptions beyond a comma too."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None  # SHELLS are click's own
    made = found(cli, {}, program, complete_var)
    script: str = made.source_template % made.source_vars()
    return script.replace('(string split "," ', '(string split --max 1 "," ')


def _stand_in_for_closed_streams() -> None:
    """After `>&-` Python has no stream there, and the next file or socket would take its number and what is printed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def _drop_output() -> None:
    """What is still in its buffer would be written once more at the end, and that failure told by Python."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
