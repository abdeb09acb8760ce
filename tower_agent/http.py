"""One small HTTP/1.1 request at a time, over the way that `protocol.aio.proxydial` walks.

For what the agent itself asks (enrolment, probes, its Secret, its own rights), not for callers. One connection and one
deadline a request, the answer bounded before it is kept; redirects are never followed, since they could carry a
credential elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from daemon.kube.connection import Connection, Cut
from protocol import defaults
from protocol.aio.hops import DialError, Hop, HopName, OnHop, unnoted
from protocol.aio.proxydial import DialTarget, open_connection
from protocol.frames import printable
from protocol.jsontext import parse_json

MAX_ANSWER_BYTES: Final = 4 * defaults.MIB
Header = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `chain` holds the certificates that the peer showed, DER, leaf first."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON; raises ValueError."""
        return parse_json(self.body)

    def text(self, limit: int = 200) -> str:
        """The body's beginning on one line, for messages."""
        return printable(" ".join(self.body[:limit].decode("utf-8", "replace").split()))


async def fetch(
    target: DialTarget,
    method: str,
    path: str,
    *,
    headers: Sequence[Header] = (),
    body: bytes = b"",
    deadline: float = defaults.HANDSHAKE_DEADLINE,
    limit: int = MAX_ANSWER_BYTES,
    on_hop: OnHop | None = None,
) -> Answer:
    """Ask once. Raises DialError: where time is up, at the hop that was not passed by then."""
    connection: Connection | None = None
    passed: set[HopName] = set()

    def note(hop: Hop) -> None:
        passed.add(hop.name)
        (on_hop or unnoted)(hop)

    try:
        async with asyncio.timeout(deadline):
            _, connection = await open_connection(target, Connection, on_hop=note)
            head = await connection.ask(_head(target, method, path, headers, len(body)) + body)
            whole = await connection.rest(limit)
            return Answer(head.status, head.headers, whole)
    except TimeoutError as error:
        text = f"{target.authority} did not answer {method} {path} within {deadline:g} s"
        raise DialError(_open_hop(target, passed), text) from error
    except Cut as error:
        raise DialError("http", f"{target.authority} {error} ({method} {path})") from error
    finally:
        if connection is not None:
            connection.abort()


def _open_hop(target: DialTarget, passed: set[HopName]) -> HopName:
    """The first hop of the way that was not passed; http, the last one, where all are behind."""
    between: dict[HopName, bool] = {
        "dns": True,
        "tcp": True,
        "proxy": target.route() is not None,
        "tls": target.ssl_context is not None,
    }
    return next((hop for hop, there in between.items() if there and hop not in passed), "http")


def _head(target: DialTarget, method: str, path: str, headers: Sequence[Header], length: int) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {target.authority}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    if length or method not in {"GET", "DELETE"}:
        lines.append(f"Content-Length: {length}")
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header value holds a line break")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
