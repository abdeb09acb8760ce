"""`top`: what the tunnels carry now, by two looks at what they have carried."""

from __future__ import annotations

import json
import sys
import time
from typing import Final

import click

from daemon.units import format_bytes
from towerctl.client import AdminClient
from towerctl.context import Ctl, pass_ctl
from towerctl.lazy import Command
from towerctl.output import Object, Resource, dump, output_option, print_document, print_list
from towerctl.resources import CLUSTERS, field
from towerctl.table import Column
from towerctl.types import Cluster, Duration

_COLUMNS: Final = {column.header: column for column in CLUSTERS.columns}
TRAFFIC: Final = Resource(
    "cluster",
    "clusters",
    (
        Column("CLUSTER", field("name")),
        _COLUMNS["REASON"],
        _COLUMNS["TUNNELS"],
        Column("STREAMS", field("streams")),
        Column("IN/s", lambda item: format_bytes(item["in_per_second"])),
        Column("OUT/s", lambda item: format_bytes(item["out_per_second"])),
        _COLUMNS["RTT"],
    ),
    field("name"),
)
_SAME: Final = ("name", "ready", "state", "flapping", "tunnels", "tunnels_expected", "rtt")  # as a Cluster has them
_SAID: Final = ("stale", "unanswered")  # what a list says of itself, where it is not whole


@click.command(cls=Command)
@click.argument("cluster", required=False, type=Cluster())
@click.option("-i", "--interval", type=Duration(minimum=0.1), default=1.0, help="Between two looks. [default: 1s]")
@click.option("--once", is_flag=True, help="Print one table and end.")
@output_option("table", "json", "yaml")
@pass_ctl
def top(ctl: Ctl, cluster: str | None, interval: float, once: bool, output: str) -> None:
    """Show what the tunnels of each cluster, or of CLUSTER, carry now: the busiest first, until Ctrl-C.

    IN comes from the member, OUT goes to it.
    """
    from towerctl.lookup import get_cluster

    client = ctl.client()
    if cluster is not None:
        get_cluster(client, cluster)
    tunnels, at = _tunnels(client, cluster), time.monotonic()
    while True:
        time.sleep(interval)
        before, since = tunnels, at
        tunnels, at = _tunnels(client, cluster), time.monotonic()
        clusters = client.get("/v1/clusters")
        if cluster is not None:
            clusters["items"] = [each for each in clusters["items"] if each.get("name") == cluster]
        _show(traffic(clusters, before, tunnels, at - since), output, live=not once)
        if once:
            return


def _tunnels(client: AdminClient, cluster: str | None) -> Object:
    return client.get("/v1/tunnels", {"cluster": cluster} if cluster else {})


def traffic(clusters: Object, before: Object, now: Object, seconds: float) -> Object:
    """What went through each cluster's tunnels in the time between two lists of them. A new tunnel began at zero."""
    earlier = {each.get("id"): each for each in before.get("items", [])}
    items = {
        each.get("name"): {
            "apiVersion": "tower/v1",
            "kind": "Traffic",
            **{key: each.get(key) for key in _SAME},
            "streams": 0,
            "in_per_second": 0.0,
            "out_per_second": 0.0,
        }
        for each in clusters.get("items", [])
    }
    for tunnel in now.get("items", []):
        item = items.get(tunnel.get("cluster"))
        if item is not None:
            item["streams"] += tunnel.get("streams") or 0
            for way in ("in", "out"):
                was = earlier.get(tunnel.get("id"), {}).get(f"bytes_{way}") or 0
                moved = (tunnel.get(f"bytes_{way}") or 0) - was
                item[f"{way}_per_second"] = round(item[f"{way}_per_second"] + moved / seconds, 1)
    busiest = sorted(
        items.values(), key=lambda item: (-item["in_per_second"] - item["out_per_second"], item["name"] or "")
    )
    said = {key: each[key] for each in (now, clusters) for key in _SAID if each.get(key)}
    return {"apiVersion": "tower/v1", "kind": "TrafficList", "seconds": round(seconds, 3), "items": busiest, **said}


def _show(listing: Object, output: str, *, live: bool) -> None:
    """One after the other, each on a cleared screen where there is one; JSON then has a line for each."""
    if not live and output != "table":
        print_document(listing, output)
    elif output == "json":
        click.echo(json.dumps(listing, ensure_ascii=False))
    elif output == "yaml":
        click.echo("---\n" + dump(listing, "yaml"), nl=False)
    else:
        click.clear()  # does nothing where there is no terminal
        print_list(TRAFFIC, listing, output=output, headers=True)
        if live and not sys.stdout.isatty():
            click.echo()
