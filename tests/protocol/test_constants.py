"""The tables of docs/PROTOCOL.md and the constants say the same."""

from __future__ import annotations

import json
import re

import pytest

from protocol import defaults
from protocol.aio.dial import FEATURES as AGENT_FEATURES
from protocol.aio.listener import FEATURES as SERVER_FEATURES
from protocol.aio.request import MAX_REQUEST_BODY, MAX_REQUEST_HEAD
from protocol.constants import (
    CONTROL_SERVICE,
    FIRST_UNNUMBERED,
    FLAG_OPTIONAL,
    HEADER_SIZE,
    SUBPROTOCOL,
    Code,
    FrameType,
)
from protocol.errors import HandshakeRejected
from protocol.flow import Limits
from protocol.frames import MAX_TEXT_BYTES
from protocol.handshake import (
    MAX_CERTIFICATE_BYTES,
    MAX_CHAIN,
    MAX_NAME,
    MAX_SIGNATURE_BYTES,
    NONCE_SIZE,
    AgentHandshake,
    Resume,
    ServerHandshake,
    reject,
)
from protocol.multiplex import MAX_STREAM_ID, RESET_BURST, RESET_RATE
from protocol.replay import RESERVE
from protocol.scheduler import FAST, FRAME_SECONDS, MIN_FRAME, QUANTUM
from protocol.session import ACK_EVERY_BYTES, ACK_EVERY_FRAMES, ACK_WITHIN
from tests.protocol import document
from tests.protocol.handshakes import signer, verifier


def test_frame_types() -> None:
    rows = document.rows("Frame types")
    assert [(int(number), name) for number, name, *_ in rows] == [(int(kind), kind.name) for kind in FrameType]
    for number, _, _, numbered, _ in rows:
        assert numbered == ("yes" if int(number) < FIRST_UNNUMBERED else "no")


def test_codes_and_their_meanings() -> None:
    source = (document.PATH.parents[1] / "protocol" / "constants.py").read_text().split("class Code")[1]
    meant = re.findall(r"^    ([A-Z_]+) = (\d+)  # (.*)$", source, re.MULTILINE)
    assert [(name, number, meaning) for number, name, meaning in document.rows("Codes")] == meant
    assert len(meant) == len(Code)


def test_the_life_of_a_stream() -> None:
    assert f"```mermaid\n{document.diagram()}\n```" in document.text(), "python -m tests.protocol.document writes it"
    assert document.matrix() in document.text(), "python -m tests.protocol.document writes it"


def test_features() -> None:
    names = {name for name, _ in document.rows("Features")}
    assert names == AGENT_FEATURES == SERVER_FEATURES


def test_members_of_the_handshake() -> None:
    documented: dict[str, set[str]] = {}
    for message, member, _ in document.rows("Handshake"):
        documented.setdefault(message, set()).add(member)
    key = b"k"
    agent = AgentHandshake(
        cluster="a", instance="i", chain=[b"a"], sign=signer(key), verify=verifier(key), nonce=bytes(32)
    )
    server = ServerHandshake(chain=[b"s"], sign=signer(key), verify=verifier(key), nonce=bytes(32))

    def body(frame: bytes) -> set[str]:
        return set(json.JSONDecoder().raw_decode(frame[frame.index(b"{") :].decode("latin-1"))[0])

    agent.resume = Resume("t", 2, 1)
    refused = HandshakeRejected(Code.UNKNOWN_TUNNEL, "x")
    hello = agent.hello()
    challenge = server.greeted(hello[HEADER_SIZE:])
    assert documented == {
        "HELLO": body(hello),
        "CHALLENGE": body(challenge),
        "PROOF": body(agent.challenged(challenge[HEADER_SIZE:])),
        "WELCOME": body(server.welcome("t", renew_only=True, received=1, refused=refused)),
        "REJECT": body(reject(Code.BUSY, "x", 1.0)),
    }


@pytest.mark.parametrize(
    "sentence",
    [
        f"subprotocol `{SUBPROTOCOL}`",
        f"`GET {defaults.TUNNEL_PATH}`",
        f"to the service `{CONTROL_SERVICE}`",
        f"A payload has at most {defaults.MAX_FRAME_PAYLOAD} bytes",
        f"during the handshake {defaults.MAX_HANDSHAKE_BYTES}",
        f"Flag 0x{FLAG_OPTIONAL:x}",
        f"head ({MAX_REQUEST_HEAD // 1024} KiB) or body ({MAX_REQUEST_BODY // 1024} KiB)",
        f"Within {defaults.HANDSHAKE_DEADLINE:g} s of the TCP connection",
        f"0 to {MAX_TEXT_BYTES} bytes of UTF-8",
        f"the signature (1 to {MAX_SIGNATURE_BYTES} bytes)",
        f"1 to {MAX_CHAIN} certificates, DER, at most {MAX_CERTIFICATE_BYTES} bytes each",
        f"1 to {MAX_NAME} printable characters",
        f"{NONCE_SIZE} random bytes",
        f"up to {MAX_STREAM_ID}",
        f"not answered within {Limits().open_deadline:g} s",
        f"At most {Limits().open_backlog} opens",
        f"at most {Limits().max_streams:,} streams",
        f"more than {RESET_BURST:g} unanswered opens cancelled by its peer, refilled by {RESET_RATE:g} a second",
        f"pile up to {Limits().control_backlog} because",
        f"up to 16 KiB ({Limits().reserved_credit} bytes)",
        f"starts at {Limits().initial_credit // 1024} KiB",
        f"up to {Limits().max_credit // 2**20} MiB",
        f"a quantum of {QUANTUM // 1024} KiB, or {FAST * QUANTUM // 1024} KiB",
        f"in {FRAME_SECONDS * 1000:g} ms",
        f"at least {MIN_FRAME // 1024} KiB",
        f"nothing for {Limits().ping_interval:g} s",
        f"nothing for {Limits().dead_after:g} s",
        f"after {ACK_EVERY_FRAMES}, after {ACK_EVERY_BYTES} bytes, or {ACK_WITHIN:g} s",
        f"(here {Limits().replay_bytes // 2**20} MiB a tunnel",
        f"more than {RESERVE // 2**20} MiB of other frames",
        f"has been detached for {Limits().resume_window:g} s",
        f"their sum is below {defaults.GIVE_UP:g} s",
        f"at most {defaults.MAX_CONTROL_LINE_BYTES} bytes, each with a `type`",
        f"at most {defaults.MAX_REVOCATION_BYTES} bytes",
    ],
)
def test_figures(sentence: str) -> None:
    assert sentence in " ".join(document.text().split())
