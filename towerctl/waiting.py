"""`--wait`: says what it waits for, never waits without being asked, and says how far things came when time is up."""

from __future__ import annotations

import time
from typing import Final

from daemon.faults import TowerError
from daemon.units import format_duration
from towerctl.client import AdminClient, path_of
from towerctl.output import Object, say

INTERVAL: Final = 0.5


def until_ready(client: AdminClient, cluster: str, *, limit: float) -> Object:
    """The cluster once it is Ready. Raises `TowerError` (TWR608) with the state it was left in."""
    say(f"Waiting up to {format_duration(limit)} for cluster {cluster} to be Ready (a request gets through) ...")
    end = time.monotonic() + limit
    while True:
        item = client.get(path_of("clusters", cluster))
        if item.get("ready") == "True":
            say(f"Cluster {cluster} is Ready.")
            return item
        left = end - time.monotonic()
        if left <= 0:
            cause = f": {item['cause']}" if item.get("cause") else ""
            raise TowerError(
                "TWR608",
                f"cluster {cluster} was not Ready within {format_duration(limit)}: {item.get('state')}{cause}",
                mend=item.get("mend"),
            )
        time.sleep(min(INTERVAL, left))
