"""`GET /v1/clusters?watch=1`: one line of JSON a change, every cluster first.

A watcher that reads slowly costs a set of names and no more: what changed several times meanwhile is sent once, as it
is then.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse

from daemon.faults import TowerError
from tower_server.admin.calls import list_clusters, view_of
from tower_server.admin.services import Services
from tower_server.admin.views import Object, object_of


def watch_clusters(services: Services) -> StreamingResponse:
    return StreamingResponse(_lines(services), media_type="application/json", headers={"Cache-Control": "no-store"})


async def _lines(services: Services) -> AsyncIterator[bytes]:
    dirty: dict[str, str] = {}
    wake = asyncio.Event()

    def changed(change: str, name: str) -> None:
        # What was added since the last line stays "added"; a deletion outweighs all before it.
        dirty[name] = "ADDED" if change == "MODIFIED" and dirty.get(name) == "ADDED" else change
        wake.set()

    stop = services.clusters.subscribe(changed)
    try:
        known = {}
        for view in (await list_clusters(services))["items"]:
            known[view["name"]] = view
            yield _line("ADDED", view)
        yield _line("SYNCED", object_of("ClusterList", {"items": []}))
        while True:
            await wake.wait()
            wake.clear()
            batch = dict(dirty)
            dirty.clear()
            for name, change in batch.items():
                try:
                    view = await view_of(services, name)
                except TowerError:  # deleted by now
                    gone = known.pop(name, None)
                    if gone is not None:
                        yield _line("DELETED", gone)
                    continue
                if change == "DELETED" and name in known:
                    yield _line("DELETED", known.pop(name))
                yield _line("MODIFIED" if name in known else "ADDED", view)
                known[name] = view
    finally:
        stop()


def _line(change: str, view: Object) -> bytes:
    return json.dumps({"type": change, "object": view}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
