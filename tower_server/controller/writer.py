"""The leader's writes: each only if something differs, each with the version that was read, each fenced by the term.

A leader that has been deposed without knowing is refused by the apiserver (its version is behind), or finds the term of
the next leader on what it is about to write and stops.
"""

from __future__ import annotations

from collections.abc import Callable

from daemon.faults import TowerError
from daemon.kube.client import Client
from daemon.kube.errors import AlreadyExists, NotFound
from daemon.kube.resources import Object, Resource, name_of, namespace_of, version_of
from tower_server.controller.desired import drifted, written, written_term
from tower_server.controller.limits import WRITE_DEADLINE
from tower_server.controller.names import CLUSTER_LABEL, MANAGER


class Deposed(TowerError):
    """Another server leads by now: nothing may be written any more."""

    def __init__(self, text: str) -> None:
        super().__init__("TWR113", f"this server no longer leads: {text}")


class NameTaken(TowerError):
    """What is wanted for one cluster is there already, as another's: `mc-a-external` is `a`'s and `a-external`'s."""

    def __init__(self, found: Object) -> None:
        owner, what = _cluster(found), f"{found.get('kind')} {name_of(found)}"
        mend = (
            f"delete one of the two Clusters, or set `externalKubeAPIEnabled: false` where {what} is the external one"
        )
        super().__init__("TWR120", f"{what} belongs to cluster {owner}", mend=mend)


class Writer:
    """`term` gives the term in which this server leads now, or None."""

    def __init__(self, client: Client, *, term: Callable[[], int | None]) -> None:
        self._client = client
        self._term = term
        self.writes = 0

    def fence(self, found: Object | None = None) -> int:
        """The term to write under. Deposed when there is none, or a later one has written already."""
        term = self._term()
        if term is None:
            raise Deposed("its lease has run out")
        if found is not None and written_term(found) > term:
            raise Deposed(
                f"{found.get('kind')} {name_of(found)} was written in term {written_term(found)}, this is {term}"
            )
        return term

    async def ensure(self, resource: Resource, wanted: Object, found: Object | None) -> Object:
        """The object as wanted; nothing is written when it is so already. One that is there although no watch has told
        of it yet is read: what this server has just made is no failure. NameTaken for one of another cluster."""
        if found is None:
            body = written(wanted, None, term=self.fence())
            self.writes += 1
            try:
                return await self._client.create(resource, body, field_manager=MANAGER)
            except AlreadyExists:
                only = f"metadata.name={name_of(wanted)}"  # by a list, which the watch needs the right to anyway
                listed = (await self._client.list(resource, namespace=namespace_of(wanted), fields=only)).items
                if not listed:
                    raise
                found = listed[0]
        if _cluster(found) not in ("", _cluster(wanted)):
            raise NameTaken(found)
        if not drifted(wanted, found):
            return found
        body = written(wanted, found, term=self.fence(found))
        self.writes += 1
        return await self._client.replace(resource, body, field_manager=MANAGER)

    async def delete(self, resource: Resource, found: Object) -> None:
        """Takes away what was read, if it still is that; what is gone already is fine."""
        self.fence(found)
        self.writes += 1
        try:
            await self._client.delete(
                resource, name_of(found), namespace=namespace_of(found), version=version_of(found)
            )
        except NotFound:
            return

    async def replace(self, resource: Resource, body: Object, *, subresource: str = "") -> Object:
        """A whole object, or its status, with the version that was read."""
        self.fence()
        self.writes += 1
        return await self._client.replace(
            resource, body, subresource=subresource, field_manager=MANAGER, deadline=WRITE_DEADLINE
        )


def _cluster(body: Object) -> str:
    """Which one an object was made for; empty for what says nothing of it, such as what is taken over from Go Tower."""
    return str((body["metadata"].get("labels") or {}).get(CLUSTER_LABEL) or "")
