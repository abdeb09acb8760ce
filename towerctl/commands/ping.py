"""`ping`: where the time goes. The mux, the opening of a stream and the apiserver are timed apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Final

import click

from daemon.faults import EXIT_COULD_NOT_CHECK, TowerError
from towerctl.client import AdminClient, path_of
from towerctl.context import Ctl, pass_ctl
from towerctl.errors import AdminRefused
from towerctl.lazy import Command
from towerctl.output import Object, output_option, print_document
from towerctl.types import Cluster, Duration
from towerctl.words import PROGRAM

PARTS: Final = ("mux", "stream", "readyz")


@click.command(cls=Command)
@click.argument("cluster", type=Cluster())
@click.option("-c", "--count", type=click.IntRange(1, 100_000), default=4, show_default=True, help="How many.")
@click.option("-i", "--interval", type=Duration(), default=1.0, help="The time between two. [default: 1s]")
@output_option("table", "json", "yaml")
@pass_ctl
def ping(ctl: Ctl, cluster: str, count: int, interval: float, output: str) -> int:
    """Send COUNT requests through the tunnel of CLUSTER; exit code 1 when one is lost or not answered by 200.

    Ctrl-C ends it earlier, with the sum of what was sent.
    """
    from towerctl.lookup import get_cluster

    results: list[Object] = []
    try:
        client = ctl.client()
        get_cluster(client, cluster)
        for number in range(1, count + 1):
            if number > 1:
                time.sleep(interval)
            results.append({"seq": number, **_once(client, cluster)})
            if output == "table":
                click.echo(_line(results[-1]))
    except TowerError as error:
        error.exit_code = EXIT_COULD_NOT_CHECK
        raise
    except KeyboardInterrupt:
        if not results:
            raise
        click.echo("", err=True)  # the terminal shows ^C
    lost = [result for result in results if result.get("status") != 200]
    if output == "table":
        click.echo("\n".join(_summary(results, len(lost))))
        if lost:
            _next_step(lost[-1], cluster)
    else:
        print_document({"apiVersion": "tower/v1", "kind": "PingList", "items": results}, output)
    return 1 if lost else 0


def _next_step(last: Object, cluster: str) -> None:
    """For people, beside what a script reads."""
    from towerctl.output import say

    if last.get("kind") == "Error":
        say(f"  next: {last['mend']} (`{PROGRAM} explain {last['code']}`)")
    else:
        say(f"  next: the apiserver answered {last.get('status')} to /readyz: `{PROGRAM} check {cluster}` says why")


def _once(client: AdminClient, cluster: str) -> Object:
    try:
        return client.post(path_of("clusters", cluster, "ping"))
    except AdminRefused as refused:
        if refused.status == 404:
            raise
        return _error(refused)


def _error(error: TowerError) -> Object:
    said = {"code": error.code, "message": error.message, "mend": error.mend}
    return {"apiVersion": "tower/v1", "kind": "Error", **said}


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value * 1e3:.1f}ms"


def _line(result: Object) -> str:
    if result.get("kind") == "Error":
        return f"seq={result['seq']} lost: {result['code']} {result['message']}"
    return (
        f"seq={result['seq']} tunnel={result.get('tunnel')} mux={_ms(result.get('mux'))} "
        f"stream={_ms(result.get('stream'))} readyz={_ms(result.get('readyz'))} {result.get('status')}"
    )


def _summary(results: list[Object], lost: int) -> Iterator[str]:
    """What the far end took: the whole, less the open and the two round trips after it (TLS, request)."""
    whole = [r for r in results if all(r.get(part) is not None for part in PARTS)]
    text = f"{len(results)} sent, {lost} lost"
    if whole:
        link = statistics.fmean(r["mux"] for r in whole)
        rest = statistics.fmean(max(0.0, r["readyz"] - r["stream"] - 2 * r["mux"]) for r in whole)
        text += f"; link {_ms(link)}, agent+apiserver {_ms(rest)}"
    yield text
    if len(whole) > 1:
        yield f"min/avg/max: {', '.join(_spread(part, [r[part] for r in whole]) for part in PARTS)}"


def _spread(part: str, times: list[float]) -> str:
    least, mean, most = (f"{value * 1e3:.1f}" for value in (min(times), statistics.fmean(times), max(times)))
    return f"{part} {least}/{mean}/{most}ms"
