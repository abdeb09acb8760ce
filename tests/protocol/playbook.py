"""A script for one session: what the peer says, what the owner wants, what is said back, as readable lines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from protocol import events
from protocol.constants import FEATURE_ACK, HEADER, HEADER_SIZE, Code, FrameType
from protocol.defaults import MIB
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.flow import Budget, Limits
from protocol.frames import (
    GOAWAY_BODY,
    U64,
    Open,
    decode_open,
    decode_reason,
    encode,
    encode_open,
    encode_reason,
)
from protocol.session import Session

EVERYTHING = 2**40


def spoken(raw: bytes) -> list[str]:
    """Frames as lines: `DATA 1 "abc"`, `RST 3 CANCELLED gone`."""
    lines = []
    while raw:
        kind, flags, _, stream, length = HEADER.unpack_from(raw)
        payload = raw[HEADER_SIZE : HEADER_SIZE + length]
        raw = raw[HEADER_SIZE + length :]
        assert flags == 0
        lines.append(f"{FrameType(kind).name} {_said(FrameType(kind), stream, payload)}".rstrip())
    return lines


def _said(kind: FrameType, stream: int, payload: bytes) -> str:
    match kind:
        case FrameType.OPEN:
            body = decode_open(memoryview(payload))
            return " ".join([str(stream), str(body.grant), *(name for name in body[1:] if name)])
        case FrameType.OPEN_OK | FrameType.CREDIT:
            return f"{stream} {U64.unpack(payload)[0]}"
        case FrameType.OPEN_ERR | FrameType.RST:
            code, text = decode_reason(memoryview(payload))
            return f"{stream} {code.name} {text}"
        case FrameType.CLOSE:
            code, text = decode_reason(memoryview(payload))
            return f"{code.name} {text}"
        case FrameType.ACK | FrameType.PING | FrameType.PONG:
            return str(U64.unpack(payload)[0])
        case FrameType.GOAWAY:
            code, deadline, retry = GOAWAY_BODY.unpack_from(payload)
            return f"{Code(code).name} {deadline} {retry} {payload[GOAWAY_BODY.size :].decode()}"
        case FrameType.DATA:
            return f"{stream} {len(payload)}" if len(payload) > 16 else f'{stream} "{payload.decode()}"'
        case _:
            return str(stream)


# What a peer may say.


def opens(stream: int, service: str = "kubernetes", grant: int = 65536) -> bytes:
    return encode_open(stream, Open(grant, service, "", ""))


def ok(stream: int, grant: int = 65536) -> bytes:
    return encode(FrameType.OPEN_OK, stream, U64.pack(grant))


def err(stream: int, code: Code = Code.UNKNOWN_SERVICE, text: str = "no") -> bytes:
    return encode_reason(FrameType.OPEN_ERR, stream, code, text)


def data(stream: int, payload: bytes = b"data") -> bytes:
    return encode(FrameType.DATA, stream, payload)


def fin(stream: int) -> bytes:
    return encode(FrameType.FIN, stream)


def rst(stream: int, code: Code = Code.CANCELLED, text: str = "gone") -> bytes:
    return encode_reason(FrameType.RST, stream, code, text)


def credit(stream: int, grant: int) -> bytes:
    return encode(FrameType.CREDIT, stream, U64.pack(grant))


def number(kind: FrameType, value: int) -> bytes:
    return encode(kind, 0, U64.pack(value))


class Playbook:
    """One end under test, by default the agent's: it accepts streams with odd ids and opens even ones."""

    def __init__(
        self,
        *,
        opens_odd: bool = False,
        accepts: bool = True,
        budget: Budget | None = None,
        features: Iterable[str] = (FEATURE_ACK,),
        **limits: Any,
    ) -> None:
        self.now = 0.0
        self.process = budget or Budget(48 * MIB)
        self.session = Session(
            opens_odd=opens_odd,
            accepts=accepts,
            limits=Limits(**limits),
            budget=self.process,
            now=0.0,
            features=features,
        )
        assert self.says() == ["PING 1"]

    def hears(self, *frames: bytes) -> list[events.Event]:
        """The events that frames cause; DataReceived as (stream, bytes)."""
        return list(map(_kept, self.session.receive(memoryview(b"".join(frames)), self.now)))

    def says(self, limit: int = EVERYTHING) -> list[str]:
        """What leaves now."""
        return spoken(b"".join(self.session.data_to_send(self.now, limit)))

    def happened(self) -> list[events.Event]:
        return list(map(_kept, self.session.take_events()))

    def after(self, seconds: float) -> list[events.Event]:
        """Time passes."""
        self.now += seconds
        return list(map(_kept, self.session.tick(self.now)))

    def opened(self, *, grant: int = 65536) -> int:
        """A stream of the peer's, accepted."""
        stream = self.session._highest_peer_id + 2 if self.session._highest_peer_id else 1
        self.hears(opens(stream, grant=grant))
        self.session.accept(stream)
        assert self.says()[0].startswith(f"OPEN_OK {stream} ")
        return stream


def _kept(event: events.Event) -> Any:
    return (event.stream, bytes(event.data)) if isinstance(event, events.DataReceived) else event


def kinds(happened: Iterable[events.Event]) -> list[type]:
    return [type(event) for event in happened]


def breaks(book: Playbook, *frames: bytes, code: Code = Code.PROTOCOL, says: str) -> None:
    """These frames end the tunnel: with this code, told to the peer, and with nothing left behind."""
    with pytest.raises(RemoteProtocolError, match=says) as broken:
        book.hears(*frames)
    assert broken.value.code is code
    assert book.says()[-1] == f"CLOSE {code.name} {broken.value.text}"
    lost = book.happened()[-1]
    assert lost == events.TunnelLost(code, broken.value.text, False)
    is_over(book)


def is_over(book: Playbook) -> None:
    assert book.session.stream_count == 0
    assert book.session.budget.used == 0
    assert book.process.used == 0
    assert book.session.deadline() is None
    assert book.hears(opens(1001), data(1001)) == []
    assert book.after(100.0) == []
    assert book.says() == []
    with pytest.raises(LocalProtocolError, match="the tunnel is over"):
        book.session.open("kubernetes", book.now)
