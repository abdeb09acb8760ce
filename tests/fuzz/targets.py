"""What each parser of strangers' bytes must do with any input: answer, or refuse by the exception that it declares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

import h11

from certs.errors import TokenError
from certs.token import parse_token
from daemon import config
from daemon.faults import TowerError
from gateway.body import Chunked
from gateway.errors import RequestError
from gateway.head import Framing, find_head, parse_request
from protocol import events
from protocol.constants import FEATURE_ACK, FEATURE_RESUME, HEADER, FrameType
from protocol.errors import HandshakeRejected, RemoteProtocolError
from protocol.flow import Budget, Limits
from protocol.frames import FrameDecoder
from protocol.handshake import AgentHandshake, Resume, ServerHandshake, parse_reject
from protocol.session import Session
from tests.protocol.handshakes import signer, verifier
from tower_agent.config import AgentConfig
from tower_server.config import ServerConfig

KEY: Final = b"k" * 32
LIMITS: Final = Limits(
    initial_credit=4096, reserved_credit=1024, max_credit=16384, tunnel_budget=65536, max_streams=20, open_backlog=4
)
MOST_BODY: Final = 65536


def _must(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def _pieces(data: bytes) -> list[bytes]:
    """`data` cut into pieces, whose sizes its own bytes decide."""
    pieces, at = [], 0
    while at < len(data):
        size = 1 + data[at] % 29
        pieces.append(data[at : at + size])
        at += size
    return pieces


def _decode(pieces: list[bytes]) -> tuple[list[tuple[int, int, int, bytes]], int | None]:
    decoder, found = FrameDecoder(4096), []
    try:
        for piece in pieces:
            for kind, flags, stream, payload in decoder.feed(memoryview(piece)):
                found.append((kind, flags, stream, bytes(payload)))
            assert decoder.buffered <= 4096 + HEADER.size, "more than one frame is kept"
    except RemoteProtocolError as error:
        return found, error.code
    return found, None


def frames(data: bytes) -> None:
    """The decoder finds the same frames however they are cut, and keeps no more than one."""
    assert _decode([data]) == _decode(_pieces(data))


def _script(data: bytes) -> list[bytes]:
    """Frames that `data` describes: most of them whole, so that they get past the decoder."""
    made, at = [], 0
    while at + 4 <= len(data):
        kind, stream, size, more = data[at : at + 4]
        at += 4
        if kind & 0x80:
            made.append(data[at : at + size])
            at += size
            continue
        payload = data[at : at + size] if more < 128 else bytes(size * more)
        at += size if more < 128 else 0
        flags = 0x80 if more == 1 else 0
        made.append(HEADER.pack(kind % 24, flags, 0, stream % 10, len(payload)) + payload)
    return made


def session(data: bytes) -> None:
    """A session survives any peer: it ends with a code, its memory stays in its bounds, and nothing is left."""
    process = Budget(2 * LIMITS.tunnel_budget)
    one = Session(
        opens_odd=bool(data[:1] > b"\x7f"),
        accepts=True,
        limits=LIMITS,
        budget=process,
        now=0.0,
        features={FEATURE_ACK, FEATURE_RESUME},
    )
    mine = one.open("kubernetes", 0.0)
    one.send(mine, b"x" * 2000)
    now = 0.0
    for piece in _script(data[1:]):
        now += 0.01
        try:
            happened = one.receive(memoryview(piece), now)
        except RemoteProtocolError:
            assert one.lost is not None
            assert one.data_to_send(now, 65536)[-1][0] == FrameType.CLOSE, "the peer is told why"
            break
        for event in happened:
            if isinstance(event, events.StreamOpened) and event.stream % 3:
                one.accept(event.stream)
            elif isinstance(event, events.DataReceived) and event.stream % 3 == 1:
                one.consume(event.stream, len(event.data), now)
        one.data_to_send(now, 65536)
        assert one.stream_count <= LIMITS.max_streams
        assert process.used <= process.limit, "memory beyond the budget"
    one.close(events.Code.SHUTDOWN, "over")
    assert one.stream_count == 0
    assert process.used == 0, "memory that the tunnel keeps"


def handshake(data: bytes) -> None:
    """Each message of the handshake is taken or refused; a PROOF without the key never proves anything."""
    which, payload = data[:1], data[1:]
    server = ServerHandshake(chain=[b"s"], sign=signer(KEY), verify=verifier(KEY), nonce=b"n" * 32, features=["ack"])
    agent = AgentHandshake(
        cluster="a", instance="i", chain=[b"a"], sign=signer(KEY), verify=verifier(KEY), nonce=b"m" * 32
    )
    try:
        match which:
            case b"h":
                server.greeted(payload)
            case b"p":
                server.greeted(agent.hello()[HEADER.size :])
                server.proven(payload)
                raise AssertionError("a PROOF that nobody signed was taken")
            case b"c":
                agent.challenged(payload)
                raise AssertionError("a CHALLENGE that nobody signed was taken")
            case b"w":
                agent.resume = Resume("t", 2, 1)
                agent.answered(FrameType.WELCOME, payload)
            case b"r":
                assert parse_reject(payload).text.isprintable()
    except HandshakeRejected as error:
        _must(error.text.isprintable(), "a reason that no terminal should get")


def head(data: bytes) -> None:
    """A request's head that is taken is read by h11 in the same way; a body of chunks is found however it is cut."""
    try:
        size = find_head(data)
        ours = parse_request(data[:size]) if size else None
    except RequestError:
        ours, size = None, 0
    if ours is not None and ours.length <= MOST_BODY:
        _as_h11(data[:size], ours.framing, ours.length)
    if ours is None or ours.framing is Framing.CHUNKED:
        assert _chunks([data[size:]]) == _chunks(_pieces(data[size:]))


def _as_h11(raw: bytes, framing: Framing, length: int) -> None:
    body = {Framing.NONE: b"", Framing.LENGTH: b"x" * length, Framing.CHUNKED: b"3\r\nabc\r\n0\r\n\r\n"}[framing]
    peer = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    peer.receive_data(raw + body + b"NEXT")
    assert isinstance(peer.next_event(), h11.Request)
    while isinstance(event := peer.next_event(), h11.Data):
        pass
    assert isinstance(event, h11.EndOfMessage)
    assert peer.trailing_data[0] == b"NEXT", "h11 sees the next request elsewhere"


def _chunks(pieces: list[bytes]) -> tuple[bool, int | None]:
    """Whether a body ends in these pieces, and where; None as a place when it is refused."""
    body, taken = Chunked(RequestError), 0
    try:
        for piece in pieces:
            _, used = body.feed(piece)
            taken += used
            if body.done:
                break
    except RequestError:
        return False, None
    return body.done, taken if body.done else None


def configuration(data: bytes) -> None:
    """A file becomes a configuration, or an error that names the file."""
    with NamedTemporaryFile(suffix=".yaml") as file:
        file.write(data[1:])
        file.flush()
        model: type[config.Section] = ServerConfig if data[:1] < b"n" else AgentConfig
        try:
            config.load(model, file=Path(file.name), environ={}).render()
        except TowerError as error:
            _must(file.name in str(error), "an error that names no file")


def token(data: bytes) -> None:
    """A token is one that is written as it is read, or is refused without a word of it repeated."""
    given = data.decode("utf-8", "surrogateescape")
    try:
        taken = parse_token(given)
    except TokenError as error:
        body = given.strip().removeprefix("twr1.")
        _must(len(body) < 12 or body not in str(error), "an error that repeats the token")
        return
    assert parse_token(str(taken)) == taken
    assert taken.secret not in repr(taken)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    each.__name__: each for each in (frames, session, handshake, head, configuration, token)
}
