"""An apiserver in this process, exact where a controller could err: versions, preconditions, finalizers, watches.

Objects change one call at a time; each call takes a moment before and after, may fail, or may have been done although
it failed. A watch tells every change in order and as late as `lag` says, each watch for itself, so what two of them
have told never fits together. A kind may be taken away, with its objects, and come back.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import random
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from typing import Any

from daemon.kube.client import Listing
from daemon.kube.errors import Ask, KubeError, Unreachable, refusal
from daemon.kube.resources import CLUSTERS, MEMBERS, SERVICES, Object, Resource, name_of, namespace_of, version_of
from daemon.kube.watch import ADDED, DELETED, MODIFIED, Event

Key = tuple[str, str]
Hook = Callable[[str, Resource, Object, "Object | None"], None]
"""Called as (who, resource, object, old) after each change; `old` is None for a new one, `object` for one that went."""
CUSTOM = (CLUSTERS, MEMBERS)


def copied(body: Any) -> Any:
    return pickle.loads(pickle.dumps(body, -1))


class Apiserver:
    def __init__(self, source: random.Random) -> None:
        self.random = source
        self.objects: dict[Resource, dict[Key, Object]] = defaultdict(dict)
        self.log: dict[Resource, list[tuple[int, float, str, Object]]] = defaultdict(list)
        self.forgotten: dict[Resource, int] = {}
        """Changes up to that version are no longer held."""
        self.leaving: set[Resource] = set()
        self.missing: set[Resource] = set()
        self.hooks: list[Hook] = []
        self.failures = 0.0
        self._version = 100
        self._addresses = 0
        self._news: dict[Resource, asyncio.Event] = defaultdict(asyncio.Event)

    @property
    def version(self) -> str:
        return str(self._version)

    def find(self, resource: Resource, name: str, namespace: str | None = None) -> Object | None:
        return self.objects[resource].get((namespace or "", name))

    def put(self, who: str, resource: Resource, body: Object) -> Object:
        key = namespace_of(body) or "", name_of(body)
        old = self.objects[resource].get(key)
        self._version += 1
        body["metadata"]["resourceVersion"] = self.version
        self.objects[resource][key] = body
        self._tell(who, resource, ADDED if old is None else MODIFIED, body, old)
        return body

    def drop(self, who: str, resource: Resource, body: Object) -> None:
        old = self.objects[resource].pop((namespace_of(body) or "", name_of(body)))
        self._version += 1
        gone = copied(old)
        gone["metadata"]["resourceVersion"] = self.version
        self._tell(who, resource, DELETED, gone, gone)

    def delete(self, who: str, resource: Resource, body: Object) -> None:
        """As a DELETE does: at once, or when the last finalizer leaves."""
        if not body["metadata"].get("finalizers"):
            self.drop(who, resource, body)
        elif not body["metadata"].get("deletionTimestamp"):
            body = copied(body)
            body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            self.put(who, resource, body)

    def _tell(self, who: str, resource: Resource, kind: str, body: Object, old: Object | None) -> None:
        self.log[resource].append((self._version, asyncio.get_running_loop().time(), kind, body))
        self._news[resource].set()
        for hook in self.hooks:
            hook(who, resource, body, old)

    def forget_changes(self, resource: Resource) -> None:
        """As a compaction does: whoever watches from before has to list anew."""
        self.forgotten[resource] = self._version
        self.log[resource].clear()
        self._news[resource].set()

    # ---- kinds --------------------------------------------------------------------------------------------------

    async def take_kind(self, resource: Resource) -> None:
        """`kubectl delete crd`, until it is gone."""
        self.leaving.add(resource)
        while True:
            for body in list(self.objects[resource].values()):
                self.delete("crd", resource, body)
            if not self.objects[resource]:
                break
            await asyncio.sleep(0.1)
        self.leaving.discard(resource)
        self.missing.add(resource)
        self.forget_changes(resource)

    def give_kind(self, resource: Resource) -> None:
        self.missing.discard(resource)

    # ---- waiting ------------------------------------------------------------------------------------------------

    async def news(self, resource: Resource) -> None:
        self._news[resource].clear()
        await self._news[resource].wait()

    def address(self) -> str:
        self._addresses += 1
        return f"10.96.{self._addresses // 250}.{self._addresses % 250 + 1}"


class Caller:
    """What `daemon.kube.client.Client` is, towards that apiserver."""

    def __init__(self, server: Apiserver, who: str, *, lag: Callable[[Resource, bool], float] | None = None) -> None:
        self.address = "apiserver"
        self.who = who
        self._server = server
        self._lag = lag or (lambda _resource, _records: 0.0)

    def close(self) -> None:
        pass

    # ---- verbs --------------------------------------------------------------------------------------------------

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None, **_: Any) -> Object:
        return await self._call(Ask("get", resource, namespace, name), lambda ask: copied(self._found(ask)))

    async def list(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
        keep: Callable[[Object], Object] = lambda body: body,
        **_: Any,
    ) -> Listing:
        def listed(ask: Ask) -> Listing:
            bodies = self._server.objects[resource].values()
            named = fields.removeprefix("metadata.name=")
            chosen = (body for body in bodies if _matches(body, namespace, labels) and named in ("", name_of(body)))
            found = [keep(copied(body)) for body in chosen]
            return Listing(found, self._server.version)

        return await self._call(Ask("list", resource, namespace), listed)

    async def newest(self, resource: Resource, *, namespace: str | None = None) -> str:
        return await self._call(Ask("list", resource, namespace), lambda _: self._server.version)

    async def create(self, resource: Resource, body: Object, **_: Any) -> Object:
        ask = Ask("create", resource, namespace_of(body), name_of(body))

        def created(ask: Ask) -> Object:
            if resource in self._server.leaving:
                raise _refused(ask, 405, "MethodNotAllowed")
            if self._server.find(resource, name_of(body), namespace_of(body)) is not None:
                raise _refused(ask, 409, "AlreadyExists")
            made = copied({"apiVersion": resource.api_version, "kind": resource.kind, **body})
            made["metadata"] |= {"uid": str(uuid.UUID(int=self._server.random.getrandbits(128))), "generation": 1}
            if resource == SERVICES:
                made["spec"].setdefault("clusterIP", self._server.address())
            if resource == MEMBERS:
                made.pop("status", None)
            _without_none(made)
            return copied(self._server.put(self.who, resource, made))

        return await self._call(ask, created)

    async def replace(self, resource: Resource, body: Object, *, subresource: str = "", **_: Any) -> Object:
        body = copied(body)

        def replaced(ask: Ask) -> Object:
            held = self._found(ask)
            if version_of(body) and version_of(body) != version_of(held):
                raise _refused(ask, 409, "Conflict")
            if body["metadata"].get("uid", held["metadata"]["uid"]) != held["metadata"]["uid"]:
                raise _refused(ask, 409, "Conflict")
            return self._written(ask, held, body)

        ask = Ask("replace", resource, namespace_of(body), name_of(body), subresource)
        return await self._call(ask, replaced)

    async def patch(
        self,
        resource: Resource,
        name: str,
        patch: Any,
        *,
        namespace: str | None = None,
        kind: str = "merge",
        subresource: str = "",
        **_: Any,
    ) -> Object:
        patch = copied(patch)

        def patched(ask: Ask) -> Object:
            held = self._found(ask)
            body = copied(held)
            if kind == "merge":
                return self._written(ask, held, _merged(body, patch))
            for step in patch:
                *way, last = (
                    part.replace("~1", "/").replace("~0", "~") for part in step["path"].removeprefix("/").split("/")
                )
                if [*way, last] == ["metadata", "resourceVersion"]:
                    if step["value"] != version_of(held):
                        raise _refused(ask, 409, "Conflict")
                    continue
                under = body
                for part in way:
                    under = under[part]
                under[last] = step["value"]
            return self._written(ask, held, body)

        return await self._call(Ask("patch", resource, namespace, name, subresource), patched)

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        uid: str | None = None,
        version: str | None = None,
        **_: Any,
    ) -> None:
        def deleted(ask: Ask) -> None:
            held = self._found(ask)
            if uid not in (None, held["metadata"]["uid"]) or version not in (None, version_of(held)):
                raise _refused(ask, 409, "Conflict")
            self._server.delete(self.who, resource, held)

        await self._call(Ask("delete", resource, namespace, name), deleted)

    async def raw(self, path: str, **_: Any) -> tuple[int, bytes]:
        """What kinds the group of Clusters has, and what may be done with them."""
        assert path == f"/apis/{CLUSTERS.api_version}"
        await self._pause()
        if CLUSTERS in self._server.missing:
            return 404, b"{}"
        verbs = ["get", "list", "watch", "delete"] + ([] if CLUSTERS in self._server.leaving else ["create", "update"])
        return 200, json.dumps({"resources": [{"name": CLUSTERS.plural, "verbs": verbs}]}).encode()

    async def watch(
        self, resource: Resource, *, version: str, namespace: str | None = None, labels: str = "", **_: Any
    ) -> AsyncGenerator[Event, None]:
        server, since = self._server, int(version)
        ask = Ask("watch", resource, namespace)
        await self._pause()
        while True:
            if resource in server.missing:
                raise _refused(ask, 404, "NotFound", named=False)
            if since < server.forgotten.get(resource, 0):
                raise _refused(ask, 410, "Expired")
            log = server.log[resource]
            place = next((index for index, each in enumerate(log) if each[0] > since), None)
            if place is None:
                await server.news(resource)
                continue
            since, at, kind, body = log[place]
            ahead = at + self._lag(resource, bool(labels)) - asyncio.get_running_loop().time()
            if ahead > 0:
                await asyncio.sleep(ahead)
            if _matches(body, namespace, labels):
                yield Event(kind, copied(body))

    # ---- how --------------------------------------------------------------------------------------------------

    async def _call(self, ask: Ask, act: Callable[[Ask], Any]) -> Any:
        await self._pause()
        server = self._server
        if ask.resource in server.missing:
            raise _refused(ask, 404, "NotFound", named=False)
        fails = server.random.random() < server.failures
        if fails and server.random.random() < 0.5:
            raise Unreachable("TWR114", f"{ask}: cut before it was done", ask=ask)
        done = act(ask)
        await self._pause()
        if fails:
            raise Unreachable("TWR114", f"{ask}: cut after it was done", ask=ask)
        return done

    async def _pause(self) -> None:
        await asyncio.sleep(self._server.random.uniform(0.0005, 0.01))

    def _found(self, ask: Ask) -> Object:
        found = self._server.find(ask.resource, ask.name or "", ask.namespace)
        if found is None:
            raise _refused(ask, 404, "NotFound")
        return found

    def _written(self, ask: Ask, held: Object, body: Object) -> Object:
        resource, meta = ask.resource, body["metadata"]
        for key in ("uid", "resourceVersion", "generation", "deletionTimestamp"):
            meta.pop(key, None)
            if key in held["metadata"]:
                meta[key] = held["metadata"][key]
        body.setdefault("apiVersion", held["apiVersion"])
        body.setdefault("kind", held["kind"])
        if ask.subresource:
            body = {**copied(held), "status": body.get("status")}
        elif resource in (MEMBERS, SERVICES):
            body.pop("status", None)
            if "status" in held:
                body["status"] = copied(held["status"])
        if resource == SERVICES:
            body["spec"].setdefault("clusterIP", held["spec"]["clusterIP"])
        _without_none(body)
        if body == held:
            return copied(held)
        if resource in CUSTOM and body.get("spec") != held.get("spec"):
            body["metadata"]["generation"] = held["metadata"].get("generation", 1) + 1
        if meta.get("deletionTimestamp") and not body["metadata"].get("finalizers"):
            self._server.put(self.who, resource, copied(body))
            self._server.drop(self.who, resource, body)
            return copied(body)
        return copied(self._server.put(self.who, resource, copied(body)))


def _matches(body: Object, namespace: str | None, labels: str) -> bool:
    if namespace is not None and namespace_of(body) not in (None, namespace):
        return False
    held = body["metadata"].get("labels") or {}
    return all(held.get(key) == value for key, value in (each.split("=") for each in labels.split(",") if each))


def _merged(under: Any, over: Any) -> Any:
    if not isinstance(over, dict):
        return over
    result = dict(under) if isinstance(under, dict) else {}
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


def _without_none(body: Object) -> None:
    """The fields that are wanted to be none are dropped, as the apiserver does."""
    for part in (body.get("spec"), body["metadata"]):
        for key in [key for key, value in (part or {}).items() if value is None]:
            del part[key]
    if body["metadata"].get("finalizers") == []:
        del body["metadata"]["finalizers"]


def _refused(ask: Ask, status: int, reason: str, *, named: bool = True) -> KubeError:
    details = {"name": ask.name} if named else {}
    return refusal(ask, "apiserver", status, json.dumps({"reason": reason, "details": details}).encode())
