"""A client of unstructured objects: dicts in, dicts out, one method a verb.

Every call has a deadline over all its tries. Tried again, with jitter: what never reached the apiserver; 429 and any
5xx that carries Retry-After (the apiserver's word that nothing was done); other 5xx and cut answers of reads only. A
write whose fate is unknown raises `Unreachable`, since only its author knows whether it may be said twice.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal
from urllib.parse import urlencode

from daemon.backoff import Backoff
from daemon.kube.connection import Connection, Connections, Cut, Endpoint, Head
from daemon.kube.errors import Ask, Gone, KubeError, Throttled, Unreachable, refusal
from daemon.kube.resources import Object, Resource, name_of, namespace_of
from daemon.kube.watch import Event, Lines, decode
from protocol.aio.hops import DialError, wait_of
from protocol.jsontext import parse_object

DEADLINE: Final = 10.0  # of one call, all tries included
RETRY_MIN: Final = 0.1
RETRY_MAX: Final = 3.0
PAGE: Final = 250  # objects of one page of a list; kubeconfigs make a Cluster 10 KiB
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024  # of one page
WATCH_SECONDS: Final = (240, 300)  # a watch is asked to end within; spread, so that many do not end together
SILENCE: Final = 150.0  # a bookmark is due each minute: a watch that says nothing for that long is dead

PatchKind = Literal["merge", "json"]
_PATCHES: Final[Mapping[str, str]] = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}


@dataclass(frozen=True, slots=True)
class Listing:
    """All objects of one consistent moment, and the version to watch from without missing a change."""

    items: list[Object]
    version: str


class Client:
    """One apiserver as one account. `close` it; calls and watches under way are cut (Unreachable)."""

    def __init__(self, endpoint: Endpoint, *, user_agent: str, deadline: float = DEADLINE) -> None:
        self._endpoint = endpoint
        self._connections = Connections(endpoint)
        self._user_agent = user_agent
        self._deadline = deadline
        self.requests = 0
        """How many requests were sent, for tests and figures."""
        self._dated: tuple[str, float] | None = None  # the apiserver's time in its last answer, and the time here then

    @property
    def ahead(self) -> float:
        """By how many seconds the clock here is ahead of the apiserver's; 0 where that one has not told its time."""
        if self._dated is None:
            return 0.0
        try:
            return self._dated[1] - parsedate_to_datetime(self._dated[0]).timestamp()
        except ValueError:
            return 0.0

    @property
    def address(self) -> str:
        return self._endpoint.address

    def close(self) -> None:
        self._connections.close()

    # ---- verbs --------------------------------------------------------------------------------------------------

    async def get(
        self, resource: Resource, name: str, *, namespace: str | None = None, deadline: float | None = None
    ) -> Object:
        """The object, or NotFound."""
        ask = Ask("get", resource, namespace, name)
        return await self._object(ask, "GET", deadline=deadline)

    async def list(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
        page: int = PAGE,
        keep: Callable[[Object], Object] = lambda body: body,
        deadline: float | None = None,
    ) -> Listing:
        """Everything that the selectors match, page by page; begins anew when the pages' version runs out. `keep` cuts
        each object before the next page is asked for, so that what nobody reads is never held of all of them."""
        ask = Ask("list", resource, namespace)
        selectors = {"labelSelector": labels, "fieldSelector": fields}
        ends = asyncio.get_running_loop().time() + (deadline or self._deadline)
        backoff = Backoff(random=random.random, minimum=RETRY_MIN, maximum=RETRY_MAX)
        while True:
            try:
                return await self._pages(ask, selectors, page, keep, ends)
            except Gone:
                delay = backoff.next()
                if asyncio.get_running_loop().time() + delay >= ends:
                    raise
            await asyncio.sleep(delay)

    async def newest(self, resource: Resource, *, namespace: str | None = None) -> str:
        """The version of now, without reading objects."""
        ask = Ask("list", resource, namespace)
        found = await self._object(ask, "GET", query={"limit": "1"})
        return str((found.get("metadata") or {}).get("resourceVersion", ""))

    async def create(
        self,
        resource: Resource,
        body: Object,
        *,
        field_manager: str = "",
        dry_run: bool = False,
        deadline: float | None = None,
    ) -> Object:
        """The new object as stored, or AlreadyExists. `dry_run` asks whether it would be."""
        ask = Ask("create", resource, namespace_of(body), name_of(body) or None)
        query = {"fieldManager": field_manager, "dryRun": "All" if dry_run else ""}
        return await self._object(ask, "POST", body=_typed(resource, body), query=query, deadline=deadline)

    async def replace(
        self,
        resource: Resource,
        body: Object,
        *,
        subresource: str = "",
        field_manager: str = "",
        deadline: float | None = None,
    ) -> Object:
        """The whole object in place of the old one; Conflict when its resourceVersion is no longer the stored one."""
        ask = Ask("replace", resource, namespace_of(body), name_of(body), subresource)
        return await self._object(
            ask, "PUT", body=_typed(resource, body), query={"fieldManager": field_manager}, deadline=deadline
        )

    async def patch(
        self,
        resource: Resource,
        name: str,
        patch: Any,
        *,
        namespace: str | None = None,
        kind: PatchKind = "merge",
        field_manager: str = "",
    ) -> Object:
        """A merge patch (a dict) or JSON patch (a list). With metadata.resourceVersion in it: Conflict if changed."""
        ask = Ask("patch", resource, namespace, name)
        query = {"fieldManager": field_manager}
        return await self._object(ask, "PATCH", body=patch, query=query, content=_PATCHES[kind])

    async def apply(self, resource: Resource, body: Object, *, field_manager: str, force: bool = False) -> Object:
        """Server-side apply: makes the object, or changes the fields named and drops those that were named before.

        Conflict where another manager owns a field, unless `force`. Safe to repeat, and repeated as reads are.
        """
        ask = Ask("apply", resource, namespace_of(body), name_of(body))
        query = {"fieldManager": field_manager, "force": "true" if force else ""}
        return await self._object(
            ask, "PATCH", body=_typed(resource, body), query=query, content=_PATCHES["apply"], safe=True
        )

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        uid: str | None = None,
        version: str | None = None,
        deadline: float | None = None,
    ) -> None:
        """Take it away, or NotFound; Conflict where `uid` or `version` is another by now."""
        ask = Ask("delete", resource, namespace, name)
        wanted = {"uid": uid, "resourceVersion": version}
        preconditions = {key: value for key, value in wanted.items() if value is not None}
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if preconditions:
            options["preconditions"] = preconditions
        await self._object(ask, "DELETE", body=options, deadline=deadline)

    async def raw(self, path: str) -> tuple[int, bytes]:
        """GET any path, such as /readyz or /version: status and body of what comes back. Unreachable without one."""
        try:
            async with asyncio.timeout(self._deadline):
                request = await self._request("GET", path, b"", "")
                async with self._connections.use() as connection:
                    head, body = await self._exchange(connection, request)
        except (DialError, Cut, TimeoutError) as error:
            raise self._unreachable(f"get {path}", error, self._deadline) from error
        return head.status, body

    async def watch(
        self,
        resource: Resource,
        *,
        version: str,
        namespace: str | None = None,
        labels: str = "",
        silence: float = SILENCE,
    ) -> AsyncGenerator[Event, None]:
        """Changes after `version` and bookmarks, until the apiserver ends it (normal, every few minutes).

        Raises Gone (list anew), Unreachable (also after `silence` seconds without a word), Forbidden, NotServed.
        Close it with `aclose()`.
        """
        ask = Ask("watch", resource, namespace)
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "labelSelector": labels,
            "timeoutSeconds": str(random.randint(*WATCH_SECONDS)),  # noqa: S311
        }
        connection: Connection | None = None
        patience = self._deadline
        try:
            async with asyncio.timeout(patience):
                connection = await self._connections.dial()
                head = await connection.ask(await self._request("GET", _target(ask, query), b"", ""))
                if head.status != 200:
                    raise self._refused(ask, head, await connection.rest(MAX_ANSWER_BYTES))
            lines, patience = Lines(), silence
            while True:
                async with asyncio.timeout(patience):
                    piece = await connection.read()
                if not piece:
                    return
                for line in lines.feed(piece):
                    yield decode(ask, self.address, line)
        except (DialError, Cut, TimeoutError) as error:
            raise self._unreachable(ask, error, patience) from error
        except ValueError as error:
            raise Unreachable("TWR114", f"{self.address} answered {ask}, but with no watch: {error}") from error
        finally:
            if connection is not None:
                connection.abort()

    # ---- requests -----------------------------------------------------------------------------------------------

    async def _pages(
        self, ask: Ask, selectors: dict[str, str], page: int, keep: Callable[[Object], Object], ends: float
    ) -> Listing:
        items: list[Object] = []
        query = {**selectors, "limit": str(page)}
        while True:
            left = max(0.0, ends - asyncio.get_running_loop().time())
            found = await self._object(ask, "GET", query=query, deadline=left)
            items += map(keep, found.pop("items", None) or ())
            metadata = found.get("metadata") or {}
            query["continue"] = metadata.get("continue") or ""
            if not query["continue"]:
                return Listing(items, str(metadata.get("resourceVersion", "")))

    async def _object(
        self,
        ask: Ask,
        method: str,
        *,
        deadline: float | None = None,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        content: str = "application/json",
        safe: bool = False,
    ) -> Object:
        data = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        target = _target(ask, query or {})
        deadline = self._deadline if deadline is None else deadline
        ends = asyncio.get_running_loop().time() + deadline
        backoff = Backoff(random=random.random, minimum=RETRY_MIN, maximum=RETRY_MAX)
        last: KubeError | None = None
        renewed = False
        try:
            async with asyncio.timeout_at(ends):
                while True:
                    try:
                        return await self._once(ask, method, target, data, content, safe=safe or method == "GET")
                    except KubeError as error:
                        last = error
                    if last.status == 401 and not renewed:
                        renewed = True
                        self._endpoint.forget_token()
                        continue
                    delay = backoff.next(retry_after=last.retry_after)
                    if not last.again or asyncio.get_running_loop().time() + delay >= ends:
                        raise last
                    await asyncio.sleep(delay)
        except TimeoutError as error:
            raise last or self._unreachable(ask, error, deadline) from error

    async def _once(self, ask: Ask, method: str, target: str, data: bytes, content: str, *, safe: bool) -> Object:
        """One try. The KubeError it raises says by `again` whether another one may follow."""
        request = await self._request(method, target, data, content)
        sent = False
        try:
            async with self._connections.use() as connection:
                sent = True
                head, answer = await self._exchange(connection, request)
        except DialError as error:
            raise self._unreachable(ask, error, 0.0, again=not sent and error.hop != "tls") from error
        except Cut as error:
            raise self._unreachable(ask, error, 0.0, again=safe) from error
        if not 200 <= head.status < 300:
            raise self._refused(ask, head, answer, safe=safe)
        try:
            return parse_object(answer)
        except ValueError as error:
            raise Unreachable("TWR114", f"{self.address} answered {ask} with what is {error}", ask=ask) from error

    async def _exchange(self, connection: Connection, request: bytes) -> tuple[Head, bytes]:
        self.requests += 1
        head = await connection.ask(request)
        if "date" in head.headers:
            self._dated = head.headers["date"], time.time()
        return head, await connection.rest(MAX_ANSWER_BYTES)

    async def _request(self, method: str, target: str, data: bytes, content: str) -> bytes:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.address}", f"User-Agent: {self._user_agent}"]
        lines.append("Accept: application/json")
        token = await self._endpoint.fresh_token()
        if token is not None:
            lines.append(f"Authorization: Bearer {token}")
        if data:
            lines.append(f"Content-Type: {content}")
        if data or method not in {"GET", "DELETE"}:
            lines.append(f"Content-Length: {len(data)}")
        if any("\r" in line or "\n" in line for line in lines):
            raise ValueError("a request line or header holds a line break")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + data

    def _refused(self, ask: Ask, head: Head, body: bytes, *, safe: bool = False) -> KubeError:
        retry_after = wait_of(head.headers.get("retry-after", ""))
        error = refusal(ask, self.address, head.status, body, retry_after=retry_after)
        unavailable = isinstance(error, Throttled | Unreachable)
        error.again = unavailable and (safe or retry_after is not None or head.status == 429)
        return error

    def _unreachable(self, ask: Ask | str, error: Exception, deadline: float, *, again: bool = False) -> Unreachable:
        text = f"did not answer within {deadline:g} s" if isinstance(error, TimeoutError) else str(error)
        made = Unreachable("TWR114", f"{ask}: {self.address} {text}", ask=ask if isinstance(ask, Ask) else None)
        made.again = again and not self._connections.closed
        return made


def _typed(resource: Resource, body: Object) -> Object:
    """Kind and apiVersion may be left out: the resource says them."""
    return {"apiVersion": resource.api_version, "kind": resource.kind, **body}


def _target(ask: Ask, query: Mapping[str, str]) -> str:
    name = None if ask.verb == "create" else ask.name
    path = ask.resource.path(ask.namespace, name, ask.subresource)
    given = {key: value for key, value in query.items() if value}
    return f"{path}?{urlencode(given)}" if given else path
