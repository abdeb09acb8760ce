"""Printing an enrolment: the one command on standard output, everything said about it on standard error."""

from __future__ import annotations

import click

from towerctl import times
from towerctl.output import Object, print_document, say


def print_join(join: Object, *, output: str, document: Object) -> None:
    """The join command alone as a table; JSON and YAML print the whole answer, secret included: it is shown once."""
    if output in ("json", "yaml"):
        print_document(document, output)
    elif output == "name":
        click.echo(f"token/{join.get('id')}")
        say("The token itself was not shown, and is not kept: `-o json` or none shows it once.")
    else:
        uses = join.get("uses") or 1
        often = "once" if uses == 1 else f"{uses} times"
        # Both are cut to seconds, so from now on even less than nothing may be left of a short one.
        good_for = times.until(join.get("expires"), now=times.seconds(join.get("created")))
        say(f"Run this in the member within {good_for} ({often}; it is not shown again):")
        click.echo(join.get("command"))
        say("and then start the agent there, with the same flags if you add any: tower-agent run")
