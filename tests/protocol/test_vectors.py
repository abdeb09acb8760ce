"""The vectors of docs/PROTOCOL.md: what they say is what this implementation writes, reads, signs and refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from protocol import events
from protocol.constants import HEADER, HEADER_SIZE, Code, FrameType
from protocol.defaults import MIB
from protocol.errors import HandshakeRejected, RemoteProtocolError
from protocol.flow import Budget, Limits
from protocol.frames import GOAWAY_BODY, U64, FrameDecoder, Open, decode_open, encode, encode_open, encode_reason
from protocol.handshake import AgentHandshake, Resume, ServerHandshake, Signer, parse_reject, reject
from protocol.session import Session
from tests.protocol.document import VECTORS
from tests.protocol.handshakes import signer, verifier
from tests.protocol.playbook import spoken


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


FRAMES = load("frames.json")
REFUSED = load("handshake-refused.json")


@pytest.mark.parametrize("vector", FRAMES["frames"], ids=lambda vector: vector["says"][:40])
def test_a_frame_is_what_it_says(vector: dict[str, Any]) -> None:
    raw = bytes.fromhex(vector["hex"])
    assert spoken(raw) == [vector["says"]]
    kind, fields = FrameType[vector["type"]], vector["fields"]
    stream = vector["stream"]
    match kind:
        case FrameType.OPEN:
            made = encode_open(stream, Open(**fields))
            assert decode_open(memoryview(raw)[HEADER_SIZE:]) == Open(**fields)
        case FrameType.OPEN_ERR | FrameType.RST | FrameType.CLOSE:
            made = encode_reason(kind, stream, Code[fields["code"]], fields["text"])
        case FrameType.GOAWAY:
            body = GOAWAY_BODY.pack(Code[fields["code"]], fields["deadline"], fields["retry_after"])
            made = encode(kind, 0, body + fields["text"].encode())
        case FrameType.DATA:
            made = encode(kind, stream, bytes.fromhex(fields["payload"]))
        case FrameType.FIN | FrameType.SKIP:
            made = encode(kind, stream)
        case _:
            made = encode(kind, stream, U64.pack(*fields.values()))
    assert made == raw


@pytest.mark.parametrize("vector", FRAMES["refused"], ids=lambda vector: vector["why"])
def test_a_breach_is_closed_upon_with_its_code(vector: dict[str, Any]) -> None:
    agent = Session(opens_odd=False, accepts=True, limits=Limits(), budget=Budget(48 * MIB), now=0.0)
    agent.data_to_send(0.0, MIB)
    said = bytes.fromhex(vector["hex"]) + bytes.fromhex(vector.get("then", "")) * vector.get("times", 1)
    with pytest.raises(RemoteProtocolError) as broken:
        agent.receive(memoryview(said), 0.0)
    assert broken.value.code is Code[vector["code"]]
    (close,) = spoken(b"".join(agent.data_to_send(0.0, MIB)))
    assert close.startswith(f"CLOSE {vector['code']} ")


@pytest.mark.parametrize("vector", FRAMES["ignored"], ids=lambda vector: vector["why"])
def test_what_is_to_be_ignored_changes_nothing(vector: dict[str, Any]) -> None:
    agent = Session(opens_odd=False, accepts=True, limits=Limits(), budget=Budget(48 * MIB), now=0.0)
    agent.data_to_send(0.0, MIB)
    told = agent.receive(memoryview(bytes.fromhex(vector["hex"])), 0.0)
    assert not [event for event in told if isinstance(event, events.DataReceived | events.TunnelLost)]
    assert not b"".join(agent.data_to_send(0.0, MIB))
    assert not agent.receive(memoryview(encode(FrameType.PING, 0, bytes(8))), 0.0)
    assert spoken(b"".join(agent.data_to_send(0.0, MIB))) == ["PONG 0"]


def test_every_type_of_frame_and_every_code_has_a_vector() -> None:
    handshake = {FrameType.HELLO, FrameType.CHALLENGE, FrameType.PROOF, FrameType.WELCOME, FrameType.REJECT}
    assert {vector["type"] for vector in FRAMES["frames"]} == {kind.name for kind in set(FrameType) - handshake}
    said = {vector["fields"].get("code") for vector in FRAMES["frames"]} | {each["code"] for each in REFUSED["rejects"]}
    assert said - {None} == set(Code.__members__)


def ends(said: dict[str, Any], sign: Signer) -> tuple[AgentHandshake, ServerHandshake]:
    """The two ends of a vector's handshake."""
    verify = verifier(bytes.fromhex(said["key"]))

    def chain(end: str) -> list[bytes]:
        return [bytes.fromhex(certificate) for certificate in said[end]["chain"]]

    agent = AgentHandshake(
        cluster=said["agent"]["cluster"],
        instance=said["agent"]["instance"],
        chain=chain("agent"),
        sign=sign,
        verify=verify,
        nonce=bytes.fromhex(said["agent"]["nonce"]),
        features=said["agent"]["features"],
        software=said["agent"]["software"],
    )
    server = ServerHandshake(
        chain=chain("server"),
        sign=sign,
        verify=verify,
        nonce=bytes.fromhex(said["server"]["nonce"]),
        features=said["server"]["features"],
    )
    return agent, server


@pytest.mark.parametrize("name", ["handshake.json", "handshake-resume.json", "handshake-anew.json"])
def test_the_handshake_is_reproduced_to_the_byte(name: str) -> None:
    said = load(name)
    transcripts: list[bytes] = []

    def sign(transcript: bytes) -> bytes:
        transcripts.append(transcript)
        return signer(bytes.fromhex(said["key"]))(transcript)

    agent, server = ends(said, sign)
    resume = Resume(**said["resume"]) if "resume" in said else None
    agent.resume = resume
    hello = agent.hello()
    challenge = server.greeted(hello[HEADER_SIZE:])
    proof = agent.challenged(challenge[HEADER_SIZE:])
    server.proven(proof[HEADER_SIZE:])
    assert server.resume == resume
    refused = said.get("refused")
    reason = HandshakeRejected(Code(refused["code"]), refused["text"]) if refused else None
    welcome = server.welcome(said["tunnel"], received=said.get("received"), refused=reason)
    answered = agent.answered(FrameType.WELCOME, welcome[HEADER_SIZE:])
    assert (answered.refused is None) == (refused is None)
    assert (answered.tunnel, answered.received) == (said["tunnel"], said.get("received"))
    frames = {"HELLO": hello, "CHALLENGE": challenge, "PROOF": proof, "WELCOME": welcome}
    assert {name: frame.hex() for name, frame in frames.items()} == said["frames"]
    assert [transcript.hex() for transcript in transcripts] == [
        said["transcripts"]["challenge"],
        said["transcripts"]["proof"],
    ]


@pytest.mark.parametrize("vector", REFUSED["refused"], ids=lambda vector: vector["why"])
def test_a_handshake_is_refused_with_its_code(vector: dict[str, Any]) -> None:
    said = load(REFUSED["of"])
    agent, server = ends(said, signer(bytes.fromhex(said["key"])))
    assert agent.hello().hex() == said["frames"]["HELLO"]
    *before, last = [bytes.fromhex(frame) for frame in vector["hears"]]

    def hear(frame: bytes) -> None:
        kind, payload = frame[0], frame[HEADER_SIZE:]
        if vector["end"] == "server":
            server.greeted(payload) if kind == FrameType.HELLO else server.proven(payload)
        else:
            agent.challenged(payload) if kind == FrameType.CHALLENGE else agent.answered(kind, payload)

    for frame in before:
        hear(frame)
    with pytest.raises(HandshakeRejected) as refused:
        hear(last)
    assert refused.value.code is Code[vector["code"]]
    assert not refused.value.by_peer


@pytest.mark.parametrize("vector", REFUSED["rejects"], ids=lambda vector: vector["code"])
def test_a_rejection_is_what_it_says(vector: dict[str, Any]) -> None:
    code, text, retry_after = Code[vector["code"]], vector["text"], vector["retry_after"]
    assert reject(code, text, retry_after).hex() == vector["hex"]
    read = parse_reject(bytes.fromhex(vector["hex"])[HEADER_SIZE:])
    assert (read.code, read.text, read.retry_after, read.by_peer) == (code, text, retry_after, True)


def test_a_tunnel_for_renewing_alone_is_said_in_welcome() -> None:
    said, vector = load(REFUSED["of"]), REFUSED["renew_only"]
    agent, server = ends(said, signer(bytes.fromhex(said["key"])))
    assert server.welcome(vector["tunnel"], renew_only=True).hex() == vector["hex"]
    agent.challenged(bytes.fromhex(said["frames"]["CHALLENGE"])[HEADER_SIZE:])
    assert agent.answered(FrameType.WELCOME, bytes.fromhex(vector["hex"])[HEADER_SIZE:]).renew_only


def told(event: events.Event) -> str:
    """An event as the trace writes it."""
    if isinstance(event, events.DataReceived):
        return f"DataReceived {event.stream} {bytes(event.data).decode()}"
    values = [getattr(event, name) for name in type(event).__dataclass_fields__]
    shown = [
        value.name if isinstance(value, Code) else f"{value:g}" if isinstance(value, float) else str(value)
        for value in values
    ]
    return " ".join([type(event).__name__, *filter(None, shown)])


def wish(session: Session, now: float, does: list[Any]) -> None:
    """A wish of the trace, by the name of the session's method."""
    name, *arguments = does
    arguments = [Code[a[5:]] if isinstance(a, str) and a.startswith("Code.") else a for a in arguments]
    keywords = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
    if name == "send":
        arguments[1] = arguments[1].encode()
    if name in ("open", "consume", "ping"):
        arguments.append(now)
    if name in ("attach", "detach"):
        arguments.insert(0, now)
    getattr(session, name)(*arguments, **keywords)


@pytest.mark.parametrize("name", ["session.json", "resume.json"])
def test_the_trace_of_two_ends(name: str) -> None:
    trace = load(name)
    process = Budget(48 * MIB)
    sessions = {
        end: Session(
            opens_odd=end == "server",
            accepts=end == "agent",
            limits=Limits(),
            budget=process,
            now=0.0,
            features=trace["features"],
        )
        for end in ("server", "agent")
    }
    for number, step in enumerate(trace["steps"]):
        session, now = sessions[step["end"]], step["at"]
        peer = sessions["agent" if step["end"] == "server" else "server"]
        for does in step.get("peer_does", []):
            wish(peer, now, does)
        for does in step.get("does", []):
            wish(session, now, does)
        learned = session.tick(now)
        raw = b"".join(session.data_to_send(now, MIB))
        where = f"step {number}: {step}"
        assert spoken(raw) == step["says"], where
        assert raw.hex() == step["hex"], where
        assert [told(event) for event in (*learned, *session.take_events())] == step.get("learns", []), where
        if step.get("lost"):  # with the link, from so many bytes on
            raw = raw[: step["lost"]["after"]]
        assert [told(event) for event in peer.receive(memoryview(raw), now)] == step["told"], where
    assert process.used == 0


def test_frames_of_the_trace_are_found_in_any_cut() -> None:
    raw = b"".join(bytes.fromhex(step["hex"]) for step in load("session.json")["steps"])
    for size in (1, 3, 1000):
        decoder, got = FrameDecoder(), b""
        for at in range(0, len(raw), size):
            for kind, flags, stream, payload in decoder.feed(memoryview(raw)[at : at + size]):
                got += HEADER.pack(kind, flags, 0, stream, len(payload)) + payload
        assert got == raw
