"""Asks another server what only that one knows: its tunnels, its streams, a ping over one of them.

Each question is a connection of its own to the replica port. Its head names the call; the answer is one line of JSON,
so that one that was cut cannot pass for a whole one. A server that does not answer within the deadline is reported with
the reason, and does not hold up the answers of the others.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from certs.errors import Untrusted
from daemon.faults import FAULTS, TowerError
from daemon.log import get_logger
from protocol.jsontext import parse_object
from tower_server.replicas.link import Link
from tower_server.replicas.wire import Asking

DEADLINE: Final = 4.0  # seconds; whoever asked this server waits for ten
MAX_TOLD_BYTES: Final = 32 * 1024 * 1024
Told = dict[str, Any]
Answer = Callable[[Asking], Awaitable[Told]]

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Silent:
    """A server that gave no answer, and why."""

    server: str
    why: str


async def ask_all(links: Iterable[Link], asking: Asking) -> tuple[list[tuple[str, Told]], list[Silent]]:
    """What each said, by its name; and who said nothing."""
    asked = list(links)
    found = await asyncio.gather(*(ask(link, asking) for link in asked), return_exceptions=True)
    told: list[tuple[str, Told]] = []
    silent: list[Silent] = []
    for link, answer in zip(asked, found, strict=True):
        if isinstance(answer, dict):
            told.append((link.peer.name, answer))
        elif isinstance(answer, TowerError):
            silent.append(Silent(link.peer.name, answer.message))
        else:
            raise answer
    return told, silent


async def ask(link: Link, asking: Asking) -> Told:
    """The answer of one server. Its own refusal, or TowerError TWR118 when there was none."""
    try:
        async with asyncio.timeout(DEADLINE):
            return _read(await _exchange(link, asking))
    except TimeoutError as error:
        raise _unanswered(link, f"no answer within {DEADLINE:g} s") from error
    except Untrusted as error:
        raise _unanswered(link, error.text) from error
    except (OSError, ValueError) as error:
        raise _unanswered(link, getattr(error, "strerror", None) or str(error) or type(error).__name__) from error


async def _exchange(link: Link, asking: Asking) -> bytes:
    peer, certificate = link.peer, link.certificate
    reader, writer = await asyncio.open_connection(
        peer.host, peer.port, ssl=certificate.calling, server_hostname=peer.name, limit=MAX_TOLD_BYTES
    )
    try:
        leaf = writer.get_extra_info("ssl_object").getpeercert(True)
        certificate.verify([leaf] if leaf else [], at=time.time(), name=peer.name)
        writer.write(asking.line())
        return await reader.readline()  # ValueError above the limit
    finally:
        writer.transport.abort()


def _read(data: bytes) -> Told:
    if not data.endswith(b"\n"):
        raise ValueError("its answer was cut")
    try:
        answer = parse_object(data)
    except ValueError as error:
        raise ValueError(f"its answer is {error}") from error
    if answer.get("type") == "refused":  # of its port, which knows no such question
        raise ValueError(str(answer.get("text", ""))[:200])
    if "error" not in answer:
        return answer
    refused = answer["error"] if isinstance(answer["error"], dict) else {}
    code = str(refused.get("code"))
    raise TowerError(code if code in FAULTS else "TWR118", str(refused.get("message"))[:1000])


def _unanswered(link: Link, why: str) -> TowerError:
    return TowerError("TWR118", f"server {link.peer.name} does not answer: {why}")


class Asked(asyncio.Protocol):
    """The far end of one question. Whoever asked may go away: then it is not answered."""

    def __init__(self, transport: Any, held: set[Asked]) -> None:
        self.transport = transport
        self._held = held
        self._task: asyncio.Task[None] | None = None

    def begin(self, asking: Asking, answer: Answer) -> None:
        self._held.add(self)
        self.transport.set_protocol(self)
        self._task = asyncio.create_task(self._say(asking, answer), name=f"replica-asked-{asking.call}")

    async def _say(self, asking: Asking, answer: Answer) -> None:
        try:
            told = await answer(asking)
        except TowerError as error:
            told = {"error": {"code": error.code, "message": error.message}}
        except Exception:  # the boundary: a defect is one question without an answer
            log.error("replica-question-failed", call=asking.call, exc_info=True)
            told = {"error": {"code": "TWR112", "message": "the server that was asked failed; its log says more"}}
        self.transport.write(json.dumps(told, separators=(",", ":")).encode() + b"\n")
        self.transport.close()

    def data_received(self, _data: Any) -> None:
        self.transport.abort()  # it has nothing more to say

    def eof_received(self) -> bool:
        return False  # it waits no longer

    def connection_lost(self, _exc: Exception | None) -> None:
        self._held.discard(self)
        if self._task is not None:
            self._task.cancel()
