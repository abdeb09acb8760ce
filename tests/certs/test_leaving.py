"""An agent leaves by its own signature, and nobody else by it."""

from __future__ import annotations

import base64
import json

import pytest

from certs.ca import Authority
from certs.errors import MessageError, Untrusted
from certs.keys import PrivateKey, generate_key, signer
from certs.leaving import MAX_REQUEST_BYTES, ask_to_leave, who_leaves

NOW = 1_800_000_000.0
NAMES = {"host": "hq", "cluster": "edge-1", "agent": "a1"}
Held = tuple[Authority, PrivateKey, tuple[bytes, ...]]


@pytest.fixture
def held() -> Held:
    authority, key = Authority.create("hq", at=NOW), generate_key()
    issued = authority.issue_agent("edge-1", "a1", public_key=key.public_key(), at=NOW)
    return authority, key, tuple(issued.chain_der)


def test_whoever_signed_it_is_who_leaves(held: Held) -> None:
    authority, key, chain = held
    identity = who_leaves(ask_to_leave(signer(key), chain=chain, **NAMES), authority.bundle)
    assert (identity.cluster, identity.agent) == ("edge-1", "a1")


def test_a_certificate_that_was_only_seen_makes_nobody_leave(held: Held) -> None:
    authority, _, chain = held
    with pytest.raises(Untrusted, match="not signed with the key of its certificate"):
        who_leaves(ask_to_leave(signer(generate_key()), chain=chain, **NAMES), authority.bundle)


@pytest.mark.parametrize("field", NAMES)
def test_a_statement_about_another_proves_nothing(held: Held, field: str) -> None:
    authority, key, chain = held
    with pytest.raises(Untrusted, match="not signed with the key of its certificate"):
        who_leaves(ask_to_leave(signer(key), chain=chain, **(NAMES | {field: "other"})), authority.bundle)


def test_an_agent_of_another_tower_is_not_ours(held: Held) -> None:
    _, key, chain = held
    with pytest.raises(Untrusted):
        who_leaves(ask_to_leave(signer(key), chain=chain, **NAMES), Authority.create("hq", at=NOW).bundle)


CERTIFICATE = base64.b64encode(b"certificate").decode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"x" * (MAX_REQUEST_BYTES + 1),
        json.dumps({"proof": CERTIFICATE}).encode(),
        json.dumps({"chain": [], "proof": CERTIFICATE}).encode(),
        json.dumps({"chain": [CERTIFICATE] * 5, "proof": CERTIFICATE}).encode(),
        json.dumps({"chain": [1], "proof": CERTIFICATE}).encode(),
        json.dumps({"chain": [CERTIFICATE]}).encode(),
        json.dumps({"chain": [CERTIFICATE], "proof": "A" * 4000}).encode(),
    ],
    ids=[
        "empty",
        "no object",
        "too large",
        "no chain",
        "empty chain",
        "long chain",
        "numbers",
        "no proof",
        "long proof",
    ],
)
def test_what_is_no_request_is_refused_by_name(held: Held, body: bytes) -> None:
    with pytest.raises(MessageError, match="the request to leave"):
        who_leaves(body, held[0].bundle)
