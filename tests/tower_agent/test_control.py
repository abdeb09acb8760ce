"""The agent's end of the control stream, against a peer that misbehaves."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest

from daemon.faults import TowerError
from protocol.errors import RemoteProtocolError
from protocol.messages import Message, encode_message
from tower_agent import control as control_module
from tower_agent.control import ControlChannel


class Wire(asyncio.Transport):
    """Keeps what was written; `stuck` bytes are not taken by the peer."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, object]] = []
        self.stuck = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.lines += [json.loads(line) for line in bytes(data).splitlines()]

    def get_write_buffer_size(self) -> int:
        return self.stuck


def channel(
    taken: list[str] | None = None, trusted: list[Message] | None = None, named: list[object] | None = None
) -> tuple[ControlChannel, Wire]:
    made = ControlChannel(
        on_ready=lambda _channel: None,
        on_lost=lambda _channel: None,
        on_revocations=(taken if taken is not None else []).append,
        on_trust=(trusted if trusted is not None else []).append,
        on_names=(named if named is not None else []).append,
    )
    wire = Wire()
    made.connection_made(wire)
    return made, wire


@pytest.mark.asyncio
async def test_renewals_are_matched_by_their_id() -> None:
    made, wire = channel()
    renewal = asyncio.create_task(made.renew(b"CSR", b"SERVING", b"PROOF"))
    await asyncio.sleep(0)
    asked = wire.lines[0]
    assert (asked["type"], asked["csr"], asked["serving_csr"]) == ("renew", "CSR", "SERVING")
    assert base64.b64decode(asked["proof"]) == b"PROOF"
    made.data_received(b'{"type":"renewed","id":"another","chain":"X","serving_chain":"Y"}\n')
    answer = {"type": "renewed", "id": asked["id"], "chain": "A", "serving_chain": "B"}
    made.data_received(json.dumps(answer).encode() + b"\n")
    assert await renewal == (b"A", b"B")


@pytest.mark.asyncio
async def test_a_refusal_a_lost_stream_and_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    made, wire = channel()
    renewal = asyncio.create_task(made.renew(b"C", b"S", b"P"))
    await asyncio.sleep(0)
    refused = {"type": "refused", "id": wire.lines[0]["id"], "code": "TWR209", "text": "revoked"}
    made.data_received(json.dumps(refused).encode() + b"\n")
    with pytest.raises(TowerError, match="the server refused: revoked"):
        await renewal
    renewal = asyncio.create_task(made.renew(b"C", b"S", b"P"))
    await asyncio.sleep(0)
    made.connection_lost(None)
    with pytest.raises(TowerError, match="the tunnel ended"):
        await renewal
    with pytest.raises(TowerError, match="no control stream"):
        await made.renew(b"C", b"S", b"P")
    monkeypatch.setattr(control_module, "RENEWAL_DEADLINE", 0.05)
    made, _ = channel()
    with pytest.raises(TowerError, match=r"did not answer within 0\.05 s"):
        await made.renew(b"C", b"S", b"P")


@pytest.mark.asyncio
async def test_a_peer_that_does_not_read_gets_no_more_status() -> None:
    made, wire = channel()
    made.status({"n": 1})
    wire.stuck = control_module.MAX_QUEUED_BYTES + 1
    made.status({"n": 2})
    wire.stuck = 0
    made.status({"n": 3})
    assert [line["n"] for line in wire.lines] == [1, 3]


@pytest.mark.asyncio
async def test_lists_are_handed_on_unknown_types_skipped_and_nonsense_ends_the_tunnel() -> None:
    taken: list[str] = []
    made, _ = channel(taken)
    made.data_received(b'{"type":"weather","sun":true}\n{"type":"revocations","li')
    made.data_received(b'st":"AAAA"}\n')
    assert taken == ["AAAA"]
    for nonsense in (b"[]\n", b"{}\n", b"garbage\n", b'{"type":"revocations"}\n', b'{"type":"renewed","id":7}\n'):
        with pytest.raises(RemoteProtocolError):
            made.data_received(nonsense)


@pytest.mark.asyncio
async def test_the_names_that_callers_use_are_handed_on() -> None:
    named: list[object] = []
    made, _ = channel(named=named)
    made.data_received(encode_message("names", names=["10.96.0.9"]))
    assert named == [["10.96.0.9"]]
