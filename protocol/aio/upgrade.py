"""The client's half of a WebSocket's opening handshake: one request, one answer, and what is wrong with the answer.

No I/O: bytes in, what follows the answer out. An unwanted answer becomes a DialError with what the server says of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from websockets.client import ClientProtocol
from websockets.exceptions import NegotiationError
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from protocol.aio.hops import DialError, asked_to_wait
from protocol.aio.proxydial import DialTarget
from protocol.defaults import MAX_HEAD_BYTES

EVIDENCE_BYTES: Final = 200  # of an unwanted answer's body, for the error
_STATUS: Final = re.compile(r"HTTP/1\.[01] (\d{3}) ?([^\r\n]{0,100})")
_LENGTH: Final = re.compile(r"\r\ncontent-length: *(\d{1,9})\r\n", re.IGNORECASE)
_TELLING: Final = re.compile(r"\r\n(server|via|location): *([^\r\n]{1,100})", re.IGNORECASE)
"""Headers that tell which hop has answered."""


class ClientUpgrade:
    """`request`, then `receive` until it returns what follows the answer. `echoed`: the subprotocol must come back."""

    def __init__(
        self, target: DialTarget, subprotocol: str, *, echoed: bool = True, headers: Mapping[str, str] | None = None
    ) -> None:
        scheme = "ws" if target.ssl_context is None else "wss"
        uri = parse_uri(f"{scheme}://{target.authority}{target.path}")
        self._client = ClientProtocol(uri, subprotocols=[Subprotocol(subprotocol)])
        self._subprotocol = subprotocol
        self._echoed = echoed
        self._headers = headers or {}
        self._answer = bytearray()

    def request(self) -> bytes:
        """What to send first."""
        request = self._client.connect()
        request.headers.update(self._headers)
        self._client.send_request(request)
        return b"".join(self._client.data_to_send())

    def receive(self, data: bytes | memoryview) -> bytes | None:
        """Bytes off the wire: what follows a good answer, None while more is needed. Raises DialError."""
        self._answer += data
        end = self._answer.find(b"\r\n\r\n") + 4
        if end < 4:
            if not self._answer.startswith(b"HTTP/1."[: len(self._answer)]):
                raise DialError("http", f"no HTTP there: it says {bytes(self._answer[:40])!r}")
            if len(self._answer) > MAX_HEAD_BYTES:
                raise DialError("http", f"an answer of more than {MAX_HEAD_BYTES} bytes to the upgrade")
            return None
        head, rest = bytes(self._answer[:end]), bytes(self._answer[end:])
        if not head.startswith(b"HTTP/1.1 101 "):
            self._unwanted(head.decode("latin-1"), rest)
            return None
        self._client.receive_data(head)
        failure = self._client.handshake_exc
        if isinstance(failure, NegotiationError):
            raise DialError("subprotocol", f"the server did not agree to {self._subprotocol}: {failure}")
        if failure is not None:
            raise DialError("http", f"no WebSocket there: {failure}")
        agreed = self._client.subprotocol
        if agreed != self._subprotocol and (self._echoed or agreed is not None):
            raise DialError("subprotocol", f"the server did not agree to {self._subprotocol}")
        return rest

    def ended(self) -> None:
        """Nothing more will come: DialError with what the server said, if it said anything."""
        head, whole, body = bytes(self._answer).partition(b"\r\n\r\n")
        if whole:
            self._unwanted(f"{head.decode('latin-1')}\r\n", body, ended=True)
        if head:
            raise DialError("http", f"the answer to the upgrade ends within its head: {head[:EVIDENCE_BYTES]!r}")

    def _unwanted(self, head: str, body: bytes, *, ended: bool = False) -> None:
        """Another status than 101: an error with what the server says about it, as far as that is announced."""
        status = _STATUS.match(head)
        if status is None:
            raise DialError("http", f"no HTTP there: it says {head[:EVIDENCE_BYTES]!r}")
        length = _LENGTH.search(head)
        if length is not None and len(body) < min(int(length[1]), EVIDENCE_BYTES) and not ended:
            return
        said = body[:EVIDENCE_BYTES].decode("utf-8", "replace").strip()
        text = f"the server answered {' '.join(status.groups()).strip()} to the upgrade"
        if told := ", ".join(f"{name.capitalize()}: {value.strip()}" for name, value in _TELLING.findall(head)[:4]):
            text += f" ({told})"
        text += f": {said}" if said else ""
        raise DialError("http", text, code=int(status[1]), retry_after=asked_to_wait(head))
