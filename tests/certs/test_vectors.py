"""docs/vectors/signed.json: what is signed, sealed and shown outside of the handshake, to the byte."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from certs import enrolment, rotation, sealing
from certs.leaving import ask_to_leave
from certs.renewal import prove_renewal
from certs.revocation import RevocationList
from certs.token import EnrolmentToken, parse_token
from daemon.kubesphere import proof

SAID: dict[str, Any] = json.loads((Path(__file__).parents[2] / "docs" / "vectors" / "signed.json").read_text())


def _renewal(given: dict[str, Any], sign: Callable[[bytes], bytes]) -> None:
    prove_renewal(sign, **{key: value.encode() if "csr" in key else value for key, value in given.items()})


def _revocations(given: dict[str, Any], sign: Callable[[bytes], bytes]) -> bytes:
    return RevocationList(
        given["number"],
        given["host"],
        given["issued_at"],
        serials={int(serial, 16): end for serial, end in given["serials"]},
        users=dict(given["users"]),
    ).sign(sign)


MADE: dict[str, Callable[[dict[str, Any], Callable[[bytes], bytes]], object]] = {
    "renewal": _renewal,
    "leaving": lambda given, sign: ask_to_leave(sign, chain=[b"leaf"], **given),
    "trust": lambda given, sign: sign(rotation._statement(given["host"], given["number"], given["bundle"].encode())),
    "seal key": lambda given, sign: sign(
        sealing._statement(given["host"], bytes.fromhex(given["seal_key"]), given["expires"])
    ),
    "revocation list": _revocations,
}


@pytest.mark.parametrize("vector", SAID["signed"], ids=lambda vector: vector["what"])
def test_what_is_signed_is_what_the_protocol_says(vector: dict[str, Any]) -> None:
    signed: list[bytes] = []

    def sign(statement: bytes) -> bytes:
        signed.append(statement)
        return bytes.fromhex(vector.get("signature", "00"))

    made = MADE[vector["what"]](vector["given"], sign)
    assert [each.hex() for each in signed] == [vector["signed"]]
    if "list" in vector:
        assert made == vector["list"].encode()


def test_every_statement_has_a_vector() -> None:
    assert {vector["what"] for vector in SAID["signed"]} == set(MADE)


def test_secrets_are_compared_by_what_the_protocol_says() -> None:
    said = SAID["compare"]
    server, agent = (base64.b64decode(said[end]) for end in ("server", "agent"))
    mac = proof(said["secret"], host=said["host"], cluster=said["cluster"], server_nonce=server, agent_nonce=agent)
    assert base64.b64encode(mac).decode() == said["mac"]


def test_what_enrolment_is_sealed_with_is_what_the_protocol_says() -> None:
    said = SAID["sealed"]
    assert sealing.seal_key_id(bytes.fromhex(said["seal_key"])) == said["key"]
    request = enrolment._context(enrolment._REQUEST, said["host"], said["id"])
    reply = enrolment._context(enrolment._REPLY, said["host"], said["id"], said["nonce"])
    assert (request.decode(), reply.decode()) == (said["request_info"], said["reply_info"])


def test_a_token_is_written_and_read_as_the_protocol_says() -> None:
    said = SAID["token"]
    token = EnrolmentToken(**said["given"])
    assert str(token) == said["token"]
    assert parse_token(said["token"]) == token
