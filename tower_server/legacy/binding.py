"""The host's group, bound by the shipped credential in a member whose agent knows nothing of it.

A native agent's manifest brings its own binding, which the member's owner may take away; a Go agent's has none, so that
certificate callers would be let in by the gateway and refused by the apiserver. What is bound here is taken away again
when native agents serve.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

import httptools

from gateway.errors import UpstreamError
from gateway.upstream import Connection, Pool

DEADLINE: Final = 10.0
MAX_ANSWER: Final = 64 * 1024
_PATH: Final = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"


class BindingError(Exception):
    """What the member's apiserver said, or why it could not be asked."""


def binding_name(host: str) -> str:
    return f"tower-legacy:{host}:cluster-admins"


async def bind(pool: Pool, host: str) -> None:
    """BindingError. One that is there already is fine."""
    document = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": binding_name(host), "labels": {"app.kubernetes.io/managed-by": "tower"}},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": f"tower:{host}:cluster-admins"}
        ],
    }
    await _ask(pool, "POST", _PATH, document, {200, 201, 409})


async def unbind(pool: Pool, host: str) -> None:
    """BindingError. One that is gone already is fine."""
    await _ask(pool, "DELETE", f"{_PATH}/{binding_name(host)}", None, {200, 202, 404})


async def _ask(pool: Pool, method: str, path: str, document: Any, good: set[int]) -> None:
    body = b"" if document is None else json.dumps(document).encode()
    head = [f"{method} {path} HTTP/1.1", f"Host: {pool.apiserver}", "User-Agent: tower-server", "Connection: close"]
    if pool.authorization is not None:
        head.append("Authorization: " + pool.authorization().decode("ascii"))
    head += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
    connection: Connection | None = None
    try:
        async with asyncio.timeout(DEADLINE):
            connection = await pool.dial()
            exchange = connection.exchange = _Exchange()
            connection.transport.write("\r\n".join(head).encode() + body)
            status, answer = await exchange.answer
    except TimeoutError:
        raise BindingError(f"the apiserver did not answer within {DEADLINE:g} s") from None
    except (UpstreamError, ConnectionError) as error:
        raise BindingError(str(error)) from error
    finally:
        if connection is not None:
            pool.discard(connection)
    if status not in good:
        raise BindingError(f"the apiserver answered {status}: {_message(answer)}")


def _message(answer: bytes) -> str:
    try:
        text = json.loads(answer)["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        text = answer[:200].decode("utf-8", "replace")
    return " ".join(str(text)[:300].split())


class _Exchange:
    """One answer, bounded."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()

    def on_body(self, body: bytes) -> None:
        self._body += body[: MAX_ANSWER - len(self._body)]

    def on_message_complete(self) -> None:
        if not self.answer.done():
            self.answer.set_result((self._parser.get_status_code(), bytes(self._body)))

    def upstream_data(self, data: memoryview) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the apiserver's answer is not HTTP: {error}")

    def upstream_eof(self) -> None:
        self._fail("the apiserver closed the connection without an answer")

    def upstream_lost(self, exc: Exception | None) -> None:
        self._fail("the connection to the apiserver was lost")

    def upstream_full(self, full: bool) -> None:
        """One small request."""

    def _fail(self, text: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(ConnectionError(text))
            self.answer.exception()
