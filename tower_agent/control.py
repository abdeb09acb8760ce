"""The control stream of one tunnel, the agent's end: lines of JSON in both directions.

The server opens it after WELCOME. The agent writes its status and asks for renewals; the server sends revocation lists,
what is to be trusted, and answers. Of what it says of one kind too closely the newest counts: each may cost a
signature's check, a write and a line of the log. Types that this agent does not know are skipped. A peer that breaks
the form loses its tunnel (the tunnel's boundary sees RemoteProtocolError); what it says is checked by whoever handles
it.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

from daemon.faults import TowerError
from protocol.constants import Code
from protocol.errors import RemoteProtocolError
from protocol.messages import Message, MessageReader, encode_message

RENEWAL_DEADLINE: Final = 15.0
HEED_EVERY: Final = 0.25  # seconds between two messages of one kind; a revocation has to count within one
MAX_QUEUED_BYTES: Final = 256 * 1024  # a server that does not read its control stream gets no more status


class ControlChannel(asyncio.Protocol):
    """Made for each control stream. `on_revocations` gets the encoded list, base64."""

    def __init__(
        self,
        *,
        on_ready: Callable[[ControlChannel], None],
        on_lost: Callable[[ControlChannel], None],
        on_revocations: Callable[[str], None],
        on_trust: Callable[[Message], None],
        on_names: Callable[[object], None],
        on_compare: Callable[[ControlChannel, str], None] = lambda _channel, _nonce: None,
    ) -> None:
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._on_revocations = on_revocations
        self._on_trust = on_trust
        self._on_names = on_names
        self._on_compare = on_compare
        self.answers: dict[str, Any] = {}
        """What the host has asked on this stream, and is told in every status from then on."""
        self._reader = MessageReader()
        self._transport: asyncio.Transport | None = None
        self._renewals: dict[str, asyncio.Future[Message]] = {}
        self._next: dict[str, Callable[[], None]] = {}  # by its kind, what was said since one of that kind was heeded
        self._resting: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._on_ready(self)

    def data_received(self, data: bytes | memoryview) -> None:
        for message in self._reader.feed(data):
            kind = message["type"]
            if kind == "revocations":
                self._heed(kind, partial(self._on_revocations, _text(message, "list")))
            elif kind == "trust":
                self._heed(kind, partial(self._on_trust, message))
            elif kind == "names":
                self._heed(kind, partial(self._on_names, message.get("names")))
            elif kind == "compare":
                self._on_compare(self, _text(message, "nonce"))
            elif kind in {"renewed", "refused"}:
                waiting = self._renewals.pop(_text(message, "id"), None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)

    def _heed(self, kind: str, act: Callable[[], None]) -> None:
        if kind in self._resting:
            self._next[kind] = act
        else:
            self._resting[kind] = asyncio.get_running_loop().call_later(HEED_EVERY, self._rested, kind)
            act()

    def _rested(self, kind: str) -> None:
        del self._resting[kind]
        if kind in self._next:
            self._heed(kind, self._next.pop(kind))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for resting in self._resting.values():
            resting.cancel()
        for waiting in self._renewals.values():
            if not waiting.done():
                waiting.set_exception(TowerError("TWR504", "the tunnel ended before the renewal was answered"))
        self._renewals.clear()
        self._on_lost(self)

    def status(self, fields: dict[str, Any]) -> None:
        """Send a status; skipped while earlier ones are still unread, since only the newest matters."""
        if self._transport is not None and self._transport.get_write_buffer_size() <= MAX_QUEUED_BYTES:
            self._transport.write(encode_message("status", **fields, **self.answers))

    async def renew(self, csr: bytes, serving_csr: bytes, proof: bytes) -> tuple[bytes, bytes]:
        """The renewed chains (PEM, leaf first): identity and serving. Raises TowerError."""
        if self._transport is None:
            raise TowerError("TWR504", "there is no control stream")
        number = secrets.token_hex(8)
        answer = self._renewals[number] = asyncio.get_running_loop().create_future()
        asked = {"csr": csr.decode(), "serving_csr": serving_csr.decode(), "proof": base64.b64encode(proof).decode()}
        self._transport.write(encode_message("renew", id=number, **asked))
        try:
            async with asyncio.timeout(RENEWAL_DEADLINE):
                message = await answer
        except TimeoutError as error:
            raise TowerError("TWR504", f"the server did not answer within {RENEWAL_DEADLINE:g} s") from error
        finally:
            self._renewals.pop(number, None)
        if message["type"] == "refused":
            raise TowerError("TWR504", f"the server refused: {message.get('text')} ({message.get('code')})")
        return _text(message, "chain").encode(), _text(message, "serving_chain").encode()


def _text(message: Message, key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str):
        raise RemoteProtocolError(Code.PROTOCOL, f"a control message without {key!r}")
    return value
