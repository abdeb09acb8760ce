"""Objects by name; a name that does not exist is answered with the ones that are close to it."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from typing import Final

from daemon.faults import TowerError
from towerctl.client import AdminClient, path_of
from towerctl.errors import AdminRefused
from towerctl.output import Object, Resource
from towerctl.words import PROGRAM

_FIRST: Final = {
    "cluster": f"add one with `{PROGRAM} add cluster {{name}}`",
    "agent": f"`{PROGRAM} create token CLUSTER` prints the command that joins one",
    "token": f"make one with `{PROGRAM} create token CLUSTER`",
    "tunnel": f"`{PROGRAM} check` says what keeps an agent from opening one",
    "stream": "there is one for each connection of a caller",
}
"""How the first of a kind comes to be."""


def one_of(client: AdminClient, resource: Resource, name: str, *, cluster: str | None = None) -> Object:
    """The object of that name. Raises `TowerError` (TWR603) with suggestions."""
    query = {"cluster": cluster} if cluster else None
    items = client.get(f"/v1/{resource.plural}", query).get("items", [])
    found = [item for item in items if resource.name(item) == name or item.get("id") == name]
    if len(found) > 1:
        owners = ", ".join(str(item.get("cluster")) for item in found)
        raise TowerError(
            "TWR601",
            f"there are {len(found)} {resource.plural} named {name!r}, in clusters {owners}",
            mend="say which one with --cluster",
        )
    if not found:
        if cluster:
            get_cluster(client, cluster)  # of one that is not there nothing is either
        names = [resource.name(item) for item in items]
        raise missing(resource.singular, name, names, plural=resource.plural, cluster=cluster)
    item: Object = found[0]
    return item


def missing(singular: str, name: str, names: list[str], *, plural: str, cluster: str | None = None) -> TowerError:
    """The refusal; `names` are those that are there, of `cluster` alone where only that one was looked through."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        mend = f"did you mean {' or '.join(sorted(close))}? `{PROGRAM} get {plural}` lists all"
    elif names:
        shown = ", ".join(sorted(names)[:8]) + (", ..." if len(names) > 8 else "")
        mend = f"there are: {shown} (`{PROGRAM} get {plural}`)"
    elif cluster:
        mend = f"it has none; `{PROGRAM} get {plural}` lists those of all clusters"
    else:
        mend = f"there is none yet; {_FIRST[singular].format(name=name)}"
    where = f" in cluster {cluster}" if cluster else ""
    return TowerError("TWR603", f"there is no {singular} {name!r}{where}", mend=mend)


@contextlib.contextmanager
def suggesting(client: AdminClient, cluster: str) -> Iterator[None]:
    """Calls about one cluster: when the server does not know it, the refusal names the clusters that are close."""
    try:
        yield
    except AdminRefused as refused:
        if refused.status != 404 or refused.code != "TWR603":
            raise
        names = [str(item.get("name")) for item in client.get("/v1/clusters").get("items", [])]
        if cluster in names:
            raise
        raise missing("cluster", cluster, names, plural="clusters") from refused


def get_cluster(client: AdminClient, cluster: str) -> Object:
    with suggesting(client, cluster):
        return client.get(path_of("clusters", cluster))
