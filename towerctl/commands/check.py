"""`check`: the server's graph of checks. Only root causes are printed as failures; what needs them is skipped.

Exit code, in every format: 0 fine (warnings too), 1 something failed, 3 it could not be checked.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import click

from daemon.commandline import FAIL_ON
from daemon.faults import EXIT_COULD_NOT_CHECK, TowerError
from towerctl.client import AdminClient
from towerctl.context import Ctl, pass_ctl
from towerctl.lazy import Command
from towerctl.output import Object, output_option, print_document, say
from towerctl.types import Cluster, Duration, FaultCode
from towerctl.words import PROGRAM

if TYPE_CHECKING:
    from daemon.checks import Report

DEADLINE: Final = 60.0  # a hundred clusters, each with checks that may take their whole deadline
AGAIN: Final = 1.0


@click.command(cls=Command)
@click.argument("cluster", required=False, type=Cluster())
@click.option("--wait", type=Duration(), metavar="DURATION", help="Check again until nothing fails, such as 2m.")
@FAIL_ON
@click.option(
    "--ignore",
    multiple=True,
    type=FaultCode(families=True),
    metavar="CODE",
    help="Do not fail for this fault, such as TWR503, or a family, TWR5xx; may be given several times.",
)
@output_option("table", "json", "yaml")
@pass_ctl
def check(ctl: Ctl, cluster: str | None, wait: float | None, fail_on: str, ignore: tuple[str, ...], output: str) -> int:
    """Check the server and all clusters, or the server and CLUSTER."""
    from daemon.checks import Report

    verdict = functools.partial(Report.exit_code, fail_on_warning=fail_on == "warning", ignore=ignore)
    try:
        client = ctl.client(timeout=ctl.timeout if "timeout" in ctl.given else DEADLINE)
        document = _measure(client, cluster)
        report = Report.of(document)
        if wait is not None and verdict(report):
            document, report = _again(client, cluster, wait, verdict)
    except TowerError as error:  # whatever it was: nothing is known of what was to be checked
        error.exit_code = EXIT_COULD_NOT_CHECK
        raise
    if output == "table":
        from daemon.checkview import by_category
        from towerctl.table import paint

        click.echo(by_category(report, paint=paint, command=PROGRAM), nl=False)
    else:
        print_document(document, output)
    return verdict(report)


def _measure(client: AdminClient, cluster: str | None) -> Object:
    from towerctl.lookup import suggesting

    if cluster is None:
        return client.get("/v1/check")
    with suggesting(client, cluster):
        return client.get("/v1/check", {"cluster": cluster})


def _again(
    client: AdminClient, cluster: str | None, wait: float, verdict: Callable[[Report], int]
) -> tuple[Object, Report]:
    from daemon.checks import Report
    from daemon.units import format_duration

    say(f"Something failed; checking again for up to {format_duration(wait)} ...")
    end = time.monotonic() + wait
    while True:
        document = _measure(client, cluster)
        report = Report.of(document)
        left = end - time.monotonic()
        if left <= 0 or not verdict(report):
            return document, report
        time.sleep(min(AGAIN, left))
