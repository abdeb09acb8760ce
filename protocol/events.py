"""What a session tells its owner. Payloads are borrowed until the next call to the session."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.constants import Code


class Event:
    """Root of what `Session.receive` and `Session.tick` return."""

    __slots__ = ()


@dataclass(slots=True, eq=False)
class DataReceived(Event):
    """Bytes of a stream, in order. `Session.consume` gives their credit back once they have been passed on."""

    stream: int
    data: memoryview


@dataclass(slots=True, frozen=True)
class StreamOpened(Event):
    """The peer asks for a stream: answer with `accept` or `refuse`."""

    stream: int
    service: str
    caller: str
    connection_id: str


@dataclass(slots=True, frozen=True)
class StreamAccepted(Event):
    """The peer accepted a stream that this end opened."""

    stream: int


@dataclass(slots=True, frozen=True)
class StreamRefused(Event):
    """The peer refused a stream that this end opened, or did not answer in time (DIAL_TIMEOUT). The stream is gone."""

    stream: int
    code: Code
    text: str


@dataclass(slots=True, frozen=True)
class StreamFinished(Event):
    """The peer will send no more; this end still may."""

    stream: int


@dataclass(slots=True, frozen=True)
class StreamReset(Event):
    """The peer dropped the stream. It is gone."""

    stream: int
    code: Code
    text: str


@dataclass(slots=True, frozen=True)
class StreamClosed(Event):
    """Both ends are done, all was handed to the link and all that was received was consumed. The stream is gone."""

    stream: int


@dataclass(slots=True, frozen=True)
class WritableAgain(Event):
    """A stream whose `send` returned False has room again."""

    stream: int


@dataclass(slots=True, frozen=True)
class RoundTrip(Event):
    """A PING came back after `seconds`; `token` as `Session.ping` returned it."""

    token: int
    seconds: float


@dataclass(slots=True, frozen=True)
class GoingAway(Event):
    """The peer takes no new streams and ends the old ones at the deadline. Times are seconds from now."""

    code: Code
    text: str
    deadline: float
    retry_after: float


@dataclass(slots=True, frozen=True)
class LinkLost(Event):
    """The link is gone; the tunnel waits for another (`Session.attach`), until TunnelLost says that it has ended."""

    code: Code
    text: str


@dataclass(slots=True, frozen=True)
class TunnelLost(Event):
    """The tunnel is over; nothing follows. `by_peer` tells whether the peer said so."""

    code: Code
    text: str
    by_peer: bool
