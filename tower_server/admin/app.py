"""The ASGI application of the admin API: who may ask, which call a path is, and how a refusal looks.

Paths are matched on their raw parts and decoded one by one, so that no `%2f` or `..` turns into another path. Requests
that a web page could have sent are refused: the Host must be `localhost` (a rebound DNS name is not), and an Origin is
never there when the command line asks.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qs, quote, unquote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from certs.names import is_label
from daemon.faults import TowerError
from daemon.log import get_logger
from tower_server.admin import calls, legacy
from tower_server.admin.body import checked, read_object
from tower_server.admin.calls import known_name
from tower_server.admin.forward import forward
from tower_server.admin.manifest import manifest
from tower_server.admin.services import Services
from tower_server.admin.watch import watch_clusters
from tower_server.faultof import error_body, retry_after, store_fault
from tower_server.store.base import StoreError
from tower_server.store.place import PLACE_HEADER

HOST: Final = "localhost"

log = get_logger(__name__)

Arguments = dict[str, str]
Call = Callable[[Services, Arguments, dict[str, Any], Mapping[str, str]], Awaitable[dict[str, Any]]]

# Path patterns: a part in capitals is an argument of that kind.
_CLUSTER, _AGENT, _TOKEN, _USER, _SERIAL = "CLUSTER", "AGENT", "TOKEN", "USER", "SERIAL"
CALLS: Final[dict[tuple[str, ...], dict[str, Call]]] = {
    ("info",): {"GET": lambda s, a, b, q: calls.info(s)},
    ("authority",): {"GET": lambda s, a, b, q: calls.authority(s)},
    ("authority", "rotate"): {"POST": lambda s, a, b, q: calls.rotate(s, b)},
    ("check",): {"GET": lambda s, a, b, q: calls.check(s, q.get("cluster"))},
    ("clusters",): {
        "GET": lambda s, a, b, q: calls.list_clusters(s),
        "POST": lambda s, a, b, q: calls.create_cluster(s, b),
    },
    ("clusters", _CLUSTER): {
        "GET": lambda s, a, b, q: calls.view_of(s, a[_CLUSTER]),
        "DELETE": lambda s, a, b, q: calls.delete_cluster(s, a[_CLUSTER]),
    },
    ("clusters", _CLUSTER, "tokens"): {"POST": lambda s, a, b, q: calls.create_token(s, a[_CLUSTER], b)},
    ("clusters", _CLUSTER, "credentials"): {"POST": lambda s, a, b, q: calls.create_credential(s, a[_CLUSTER], b)},
    ("clusters", _CLUSTER, "legacy-token"): {
        "POST": lambda s, a, b, q: legacy.create_token(s, a[_CLUSTER], b),
        "DELETE": lambda s, a, b, q: legacy.delete_token(s, a[_CLUSTER]),
    },
    ("clusters", _CLUSTER, "legacy-window"): {
        "POST": lambda s, a, b, q: legacy.create_window(s, a[_CLUSTER], b),
        "DELETE": lambda s, a, b, q: legacy.delete_window(s, a[_CLUSTER]),
    },
    ("clusters", _CLUSTER, "manifest"): {"POST": lambda s, a, b, q: manifest(s, a[_CLUSTER], b)},
    ("clusters", _CLUSTER, "connection"): {"GET": lambda s, a, b, q: calls.connection_of(s, a[_CLUSTER])},
    ("clusters", _CLUSTER, "ping"): {"POST": lambda s, a, b, q: calls.ping(s, a[_CLUSTER])},
    ("tunnels",): {"GET": lambda s, a, b, q: calls.list_tunnels(s, q.get("cluster"))},
    ("streams",): {"GET": lambda s, a, b, q: calls.list_streams(s, q.get("cluster"))},
    ("agents",): {"GET": lambda s, a, b, q: calls.list_agents(s, q.get("cluster"))},
    ("agents", _CLUSTER, _AGENT, "revoke"): {
        "POST": lambda s, a, b, q: calls.revoke_agent(s, a[_CLUSTER], a[_AGENT]),
    },
    ("tokens",): {"GET": lambda s, a, b, q: calls.list_tokens(s, q.get("cluster"))},
    ("tokens", _TOKEN): {"DELETE": lambda s, a, b, q: calls.revoke_token(s, a[_TOKEN])},
    ("revocations",): {"GET": lambda s, a, b, q: calls.list_revocations(s)},
    ("callers", _USER, "revoke"): {"POST": lambda s, a, b, q: calls.revoke_caller(s, a[_USER])},
    ("certificates", _SERIAL, "revoke"): {"POST": lambda s, a, b, q: calls.revoke_certificate(s, a[_SERIAL])},
}
_WITH_BODY: Final = frozenset(
    {
        ("authority", "rotate"),
        ("clusters",),
        *(("clusters", _CLUSTER, of) for of in ("tokens", "credentials", "manifest", "legacy-token", "legacy-window")),
    }
)
_LABELS: Final = {_CLUSTER: "cluster", _AGENT: "agent", _TOKEN: "token"}
_FORWARD: Final = ("clusters", _CLUSTER, "forward", "SERVICE")
MAX_LOGGED: Final = 200  # characters of what a caller sent
_QUERIES: Final = frozenset({"cluster", "watch"})


class AdminApp:
    """Every call of the API; made once by the server."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._websocket(WebSocket(scope, receive, send))
        elif scope["type"] == "http":
            request = Request(scope, receive)
            response = await self._http(request)
            self._services.metrics.admin_requests.labels(str(response.status_code)).inc()
            await response(scope, receive, send)

    async def _http(self, request: Request) -> Response:
        try:
            admitted(request.headers)
            parts = read_parts(request.scope)
            query = read_query(request.scope)
            if parts == ["clusters"] and request.method == "GET" and query.get("watch") in ("1", "true"):
                return watch_clusters(self._services)
            if parts == ["backup"] and request.method == "GET":
                log.info("admin", caller=_caller(request.scope), method=request.method, path=request.url.path)
                data, place = await self._services.store.snapshot(), self._services.store.place
                headers = {"Cache-Control": "no-store", PLACE_HEADER: quote(place)}
                return Response(data, 200, headers, "application/vnd.sqlite3")
            call, arguments, pattern = _find(request.method, parts)
            document = await read_object(request)
            if pattern not in _WITH_BODY:
                checked(calls.Nothing, document)
            result = await call(self._services, arguments, document, query)
            if request.method != "GET":
                log.info("admin", caller=_caller(request.scope), method=request.method, path=request.url.path)
            return json_response(201 if request.method == "POST" and pattern in _WITH_BODY else 200, result)
        except TowerError as error:
            _note_refusal(request.scope, request.method, error)
            return error_response(error.about(_cluster_of(request.scope)))
        except _WrongMethod as wrong:
            refusal = TowerError("TWR612", f"{request.method} is not a call of this path")
            _note_refusal(request.scope, request.method, refusal, status=405)
            return error_response(refusal, status=405, headers={"Allow": ", ".join(wrong.allowed)})
        except StoreError as error:
            fault = store_fault(error)
            _note_refusal(request.scope, request.method, fault)
            return error_response(fault)
        except Exception as error:  # the boundary: a defect is one failed call, not the end of the API
            log.error("admin-call-failed", method=request.method, path=request.url.path, exc_info=True)
            return error_response(TowerError("TWR112", f"{type(error).__name__}; the server's log says more"))

    async def _websocket(self, websocket: WebSocket) -> None:
        try:
            admitted(websocket.headers)
            parts = read_parts(websocket.scope)
            arguments = _match(_FORWARD, parts)
            if arguments is None:
                raise TowerError("TWR612", "there is no WebSocket at this path")
        except TowerError as error:
            _note_refusal(websocket.scope, "WebSocket", error)
            await websocket.send_denial_response(error_response(error))
            return
        cluster = arguments[_CLUSTER]

        def refuse(error: TowerError) -> Response:
            return error_response(error.about(cluster))

        await forward(self._services, websocket, cluster, arguments["SERVICE"], refuse=refuse)


class _WrongMethod(Exception):
    def __init__(self, allowed: list[str]) -> None:
        self.allowed = allowed


def admitted(headers: Mapping[str, str]) -> None:
    if headers.get("host", "").rpartition(":")[0].lower() != HOST and headers.get("host", "").lower() != HOST:
        raise _Misdirected("TWR607", f"the admin API answers to the host {HOST!r} only")
    if "origin" in headers:
        raise TowerError("TWR607", "the request has an Origin: a web page may not use the admin API")


class _Misdirected(TowerError):
    """Asked under a name that is not ours: 421 (RFC 9110 §15.5.20)."""

    @property
    def http_status(self) -> int:
        return 421


def read_parts(scope: Scope) -> list[str]:
    """The parts of the path below /v1, decoded one by one."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    parts = raw.partition(b"?")[0].decode("latin-1").split("/")
    if len(parts) < 3 or parts[0] != "" or parts[1] != "v1":
        raise TowerError("TWR612", "the calls of the admin API begin with /v1/")
    return [unquote(part, errors="replace") for part in parts[2:]]


def _cluster_of(scope: Scope) -> str:
    """The cluster that a call is about; empty where it is about none, or names what cannot be one."""
    parts = str(scope["path"]).split("/")
    return parts[3] if len(parts) > 3 and parts[2] in ("clusters", "agents") and is_label(parts[3]) else ""


def read_query(scope: Scope) -> dict[str, str]:
    query = {name: values[-1] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
    unknown = sorted(query.keys() - _QUERIES)
    if unknown:
        raise TowerError("TWR605", f"the query {unknown[0][:40]!r} is not known")
    return query


def _find(method: str, parts: list[str]) -> tuple[Call, Arguments, tuple[str, ...]]:
    for pattern, methods in CALLS.items():
        arguments = _match(pattern, parts)
        if arguments is not None:
            if method not in methods:
                raise _WrongMethod(sorted(methods))
            return methods[method], arguments, pattern
    raise TowerError("TWR612", "the admin API has no such path")


def pattern_of(parts: list[str], *, websocket: bool = False) -> tuple[str, ...]:
    """The pattern that a path fits, arguments in capitals; TowerError TWR612 where no call has it.

    `backup` is none of them: with the state goes the CA, which whoever may only read must not have.
    """
    for pattern in (_FORWARD,) if websocket else CALLS:
        if _match(pattern, parts) is not None:
            return pattern
    raise TowerError("TWR612", "the admin API has no such path")


def _match(pattern: tuple[str, ...], parts: list[str]) -> Arguments | None:
    if len(pattern) != len(parts):
        return None
    arguments = {}
    for expected, part in zip(pattern, parts, strict=True):
        if not expected.isupper():
            if expected != part:
                return None
            continue
        arguments[expected] = part
    for kind, part in arguments.items():
        if kind in _LABELS:
            known_name(part, _LABELS[kind])
    return arguments


def _note_refusal(scope: Scope, method: str, error: TowerError, *, status: int | None = None) -> None:
    """One line; the path may be anything, so it is cut. Never the query or the body."""
    log.info(
        "admin-refused",
        caller=_caller(scope),
        method=method[:MAX_LOGGED],
        path=str(scope["path"])[:MAX_LOGGED],
        status=status or error.http_status,
        code=error.code,
        text=error.message[:MAX_LOGGED],
    )


def _caller(scope: Scope) -> str:
    client = scope.get("client")
    return f"{client[0]} {client[1]}" if client else "unknown"


def json_response(status: int, document: dict[str, Any]) -> Response:
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    return _response(status, body, {})


def _response(status: int, body: bytes, headers: Mapping[str, str]) -> Response:
    return Response(body, status, {"Cache-Control": "no-store", **headers}, "application/json")


def error_response(
    error: TowerError, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    return _response(status or error.http_status, error_body(error), {**retry_after(error), **(headers or {})})
