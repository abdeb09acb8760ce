"""The exceptions of the protocol. Who is at fault is in the type.

ProtocolError
├── LocalProtocolError      this end asked for something that the state does not allow; nothing was sent
├── RemoteProtocolError     the peer broke a rule; the tunnel ends with `code`
├── HandshakeRejected       one end refused the other during the handshake
├── StreamError             a stream could not be opened or was cut short
│   ├── StreamRefused       the peer answered OPEN with OPEN_ERR, or nobody answered in time
│   └── StreamReset         the stream was open and ended without being finished
└── TunnelLost              the whole tunnel ended, and every stream with it
"""

from __future__ import annotations

from protocol.constants import Code


class ProtocolError(Exception):
    """Root of the room's exceptions: a wire code and a sentence for a person."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return f"{self.text} ({self.code.name})"


class LocalProtocolError(ProtocolError):
    """This end asked for something that the state does not allow; nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer broke a rule of docs/PROTOCOL.md; the tunnel is closed with `code`."""


class HandshakeRejected(ProtocolError):
    """A handshake was refused, by this end or by the peer.

    Attributes:
        retry_after: seconds the refused end should wait before it tries again; None when trying again as it is is
            pointless.
        by_peer: True when the refusal came over the wire.
        cluster: of the identity whose holder was refused, where that is proven; None where nothing is.
    """

    def __init__(
        self,
        code: Code,
        text: str,
        retry_after: float | None = None,
        *,
        by_peer: bool = False,
        cluster: str | None = None,
    ) -> None:
        super().__init__(code, text)
        self.retry_after = retry_after
        self.by_peer = by_peer
        self.cluster = cluster


class StreamError(ProtocolError):
    """A stream could not be opened or was cut short."""


class StreamRefused(StreamError):
    """The peer answered OPEN with OPEN_ERR, or nobody answered in time."""


class StreamReset(StreamError):
    """The stream ended without being finished."""


class TunnelLost(ProtocolError):
    """The tunnel ended, and every stream with it."""
