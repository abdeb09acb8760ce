"""Whether a member is accepted under a cluster's name: looked at through its tunnel once, before others rely on it.

A refusal names its mend, and holds back only the kubeconfig on the resource and the federation: the port works, callers
with credentials of their own are served, and a cluster that has its kubeconfig already keeps it. If the member's owner
does not let this host read or write something, that is reported but is no refusal.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from daemon.faults import TowerError
from daemon.kube.client import Client
from daemon.kube.errors import AlreadyExists, Conflict, Forbidden, NotFound, Unreachable
from daemon.kube.resources import CONFIG_MAPS, NAMESPACES
from protocol.jsontext import parse_object
from tower_server.controller import mark
from tower_server.controller.mark import Mark, Owner
from tower_server.controller.names import MANAGER

OLDEST: Final = (1, 19)  # what the agent and kubectl's own requests are known to work with
KUBESPHERE_SPACE: Final = "kubesphere-system"
KUBESPHERE_HOST: Final = "cluster.kubesphere.io/host-cluster"
KUBESPHERE_NAME: Final = "cluster.kubesphere.io/name"
_VERSION: Final = re.compile(r"v?(\d{1,4})\.(\d{1,4})")


class Refused(TowerError):
    """The member is not accepted: TWR123 to TWR126."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is known of the member before it is asked."""

    owner: Owner
    hosted_as: str
    """The name of this host's own Cluster in KubeSphere; empty without KubeSphere."""
    served_too: frozenset[str]
    """The hosts that the member's agent serves too."""
    kubesphere: str
    """What is wrong between the two KubeSpheres; empty for nothing."""


async def accept(
    client: Client, candidate: Candidate, *, known: Callable[[str], Awaitable[bool]], fence: Callable[[], object]
) -> str:
    """Looks, and leaves the mark; what there is to say of an accepted member, mostly nothing.

    `known(cluster)` says whether this host still has a cluster of that name; `fence()` is called before each write.
    Refused, KubeError (Unreachable: the member does not answer).
    """
    await _version(client)
    await _kubesphere_owner(client, candidate)
    if candidate.kubesphere:
        raise Refused("TWR125", candidate.kubesphere)
    try:
        await _leave_mark(client, candidate, known=known, fence=fence)
    except Forbidden as error:
        return f"this host may not leave its mark in the member, so that another one may take it too: {error.message}"
    return ""


async def release(client: Client, owner: Owner) -> bool:
    """Takes this host's mark away again, if it is this cluster's; whether it was."""
    try:
        found = mark.read_mark(await client.get(CONFIG_MAPS, mark.mark_name(owner.host), namespace=mark.SPACE))
        if found.owner == owner:
            await client.delete(CONFIG_MAPS, found.name, namespace=mark.SPACE, version=found.version)
    except NotFound:
        return False
    return found.owner == owner


async def _version(client: Client) -> None:
    status, body = await client.raw("/version")
    try:
        document = parse_object(body)
    except ValueError:
        document = None
    if status >= 500 or document is None:
        raise Unreachable("TWR114", f"{client.address} answered {status} to get /version", status=status)
    told = str(document.get("gitVersion") or "")
    found = _VERSION.match(told)
    if status == 200 and found is not None and (int(found[1]), int(found[2])) < OLDEST:
        raise Refused("TWR126", f"the member runs Kubernetes {told[:40]}, older than {OLDEST[0]}.{OLDEST[1]}")


async def _kubesphere_owner(client: Client, candidate: Candidate) -> None:
    """KubeSphere 4.x notes on the member whose it is, and takes no second owner."""
    try:
        space = await client.get(NAMESPACES, KUBESPHERE_SPACE)
    except (NotFound, Forbidden):
        return
    notes: Mapping[str, Any] = space["metadata"].get("annotations") or {}
    host, name = str(notes.get(KUBESPHERE_HOST) or ""), str(notes.get(KUBESPHERE_NAME) or "")
    own = host == candidate.hosted_as and name in ("", candidate.owner.cluster)
    if not host or own or str(notes.get(mark.SHARED, "")).lower() == "true":
        return
    raise Refused(
        "TWR124",
        f"the KubeSphere of the host cluster {host!r} manages this member as {name!r}",
        mend=f"delete that Cluster there; where it is gone, in the member: kubectl annotate namespace "
        f"{KUBESPHERE_SPACE} {KUBESPHERE_HOST}- {KUBESPHERE_NAME}-",
    )


async def _leave_mark(
    client: Client, candidate: Candidate, *, known: Callable[[str], Awaitable[bool]], fence: Callable[[], object]
) -> None:
    owner, made = candidate.owner, False
    marks = await _marks(client)
    own = mark.ours(marks, owner)
    if own is not None and own.owner != owner:
        await _replace(client, own, owner, known=known, fence=fence)
    other = mark.in_the_way(marks, owner, served_too=candidate.served_too)
    if other is None and own is None:
        fence()
        try:
            await client.create(CONFIG_MAPS, mark.mark_body(owner), field_manager=MANAGER)
        except AlreadyExists:
            raise Conflict("TWR116", "a mark of this host's name appeared in the member just now") from None
        made = True
        # Another host may have looked and written in between: the later of two marks gives way.
        other = mark.in_the_way(await _marks(client), owner, served_too=candidate.served_too)
    if other is None:
        return
    if made:
        await release(client, owner)
    raise Refused(
        "TWR124",
        f"host {other.owner.host!r} has had this member since {other.at} as its cluster {other.owner.cluster!r}",
        mend=f"delete that cluster there; where that host is gone, in the member: kubectl -n {mark.SPACE} delete "
        f"configmap {other.name}; to share the member on purpose: kubectl -n {mark.SPACE} annotate configmap "
        f"{other.name} {mark.SHARED}=true",
    )


async def _replace(
    client: Client,
    own: Mark,
    owner: Owner,
    *,
    known: Callable[[str], Awaitable[bool]],
    fence: Callable[[], object],
) -> None:
    """A mark under our name that is not this cluster's: of another name here, of an earlier life, or a stranger's."""
    if own.owner.uid != owner.uid:
        raise Refused(
            "TWR124",
            f"another host that is called {own.owner.host!r} too has had this member since {own.at} as its cluster "
            f"{own.owner.cluster!r}",
            mend=f"delete that cluster there, or give this host another name (`host`) before its agents join; where "
            f"that host is gone, in the member: kubectl -n {mark.SPACE} delete configmap {own.name}",
        )
    if await known(own.owner.cluster):
        raise Refused("TWR123", f"the member is this host's cluster {own.owner.cluster!r} already")
    fence()
    body = mark.mark_body(owner)
    body["metadata"]["resourceVersion"] = own.version
    await client.replace(CONFIG_MAPS, body, field_manager=MANAGER)


async def _marks(client: Client) -> list[Mark]:
    found = await client.list(CONFIG_MAPS, namespace=mark.SPACE, labels=mark.SELECTOR)
    return [mark.read_mark(body) for body in found.items]
