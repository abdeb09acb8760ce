"""The admin API among several servers: what only the owner of a tunnel knows is asked of all of them.

A list has the items of every server that answered, each with its `server`, and names in `unanswered` those that did
not. One server alone answers for itself, without either.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from daemon.faults import TowerError
from tower_server.admin.services import Services
from tower_server.admin.views import Object, list_of
from tower_server.replicas.wire import Asking

MAX_SAID: Final = 200  # characters of a reason


async def everywhere(services: Services, kind: str, call: str, cluster: str | None, own: Iterable[Object]) -> Object:
    """The list of all servers."""
    replicas = services.replicas
    if replicas is None:
        return list_of(kind, own)
    from tower_server.replicas.asking import ask_all

    told, silent = await ask_all(replicas.links.values(), Asking(call, cluster or ""))
    items = [{**item, "server": replicas.name} for item in own]
    for server, answer in told:
        items += [{**item, "server": server} for item in _items(answer)]
    unanswered = [{"server": each.server, "reason": each.why[:MAX_SAID]} for each in silent]
    return {**list_of(kind, items), "unanswered": unanswered}


async def tell_everywhere(services: Services, call: str, made: Object) -> Object:
    """What was done here, with those named that did not say that they heard of it."""
    if services.replicas is None:
        return made
    from tower_server.replicas.asking import ask_all

    _, silent = await ask_all(services.replicas.links.values(), Asking(call, ""))
    return {**made, "unanswered": [{"server": each.server, "reason": each.why[:MAX_SAID]} for each in silent]}


def _items(answer: Object) -> list[dict[str, Any]]:
    items = answer.get("items")
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


async def at_the_owner(services: Services, call: str, cluster: str) -> Object | None:
    """What the server that holds the cluster's tunnel says; None when no other server holds one. TowerError is its."""
    link = services.replicas.owner(cluster) if services.replicas is not None else None
    if link is None:
        return None
    from tower_server.replicas.asking import ask

    return {**await ask(link, Asking(call, cluster)), "server": link.peer.name}


def with_others(view: Object, tunnels: Iterable[Object]) -> Object:
    """An agent with what other servers say of its tunnels."""
    held = [each for each in tunnels if (each.get("cluster"), each.get("agent")) == (view["cluster"], view["name"])]
    if not held:
        return view
    first = held[0]
    return {
        **view,
        "tunnels": view["tunnels"] + len(held),
        "version": view["version"] or first.get("version"),
        "remote": view["remote"] or first.get("remote"),
    }


def unknown(call: str) -> TowerError:
    return TowerError("TWR612", f"a server of the host asks for {call[:40]!r}, which this one does not know")
