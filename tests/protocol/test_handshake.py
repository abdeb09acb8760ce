"""The handshake: both ends prove themselves over everything that was said, and every refusal says what is wrong."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.constants import HEADER_SIZE, Code, FrameType
from protocol.defaults import MAX_HANDSHAKE_BYTES
from protocol.errors import HandshakeRejected
from protocol.frames import U32
from protocol.handshake import (
    MAX_CERTIFICATE_BYTES,
    MAX_CHAIN,
    MAX_SIGNATURE_BYTES,
    AgentHandshake,
    Resume,
    ServerHandshake,
    Welcome,
    parse_reject,
    reject,
)
from tests.protocol.handshakes import Identity, signer, verifier

KEY = b"the agent's and, here, the server's"


def agent(**changes: Any) -> AgentHandshake:
    settings: dict[str, Any] = {
        "cluster": "alpha",
        "instance": "pod-1",
        "chain": [b"alpha", b"issuer"],
        "sign": signer(KEY),
        "verify": verifier(KEY),
        "nonce": bytes(range(32)),
        "features": ["ack"],
        "software": "tower-agent 0.1",
    }
    return AgentHandshake(**{**settings, **changes})


def server(**changes: Any) -> ServerHandshake:
    settings: dict[str, Any] = {
        "chain": [b"tower-0", b"issuer"],
        "sign": signer(KEY),
        "verify": verifier(KEY),
        "nonce": bytes(range(32, 64)),
        "features": ["ack", "later"],
    }
    return ServerHandshake(**{**settings, **changes})


def body(frame: bytes) -> bytes:
    """A frame's payload."""
    return frame[HEADER_SIZE:]


def signed(raw: bytes, signature: bytes = b"signature") -> bytes:
    return U32.pack(len(raw)) + raw + signature


def parts(payload: bytes) -> tuple[dict[str, Any], bytes]:
    (size,) = U32.unpack_from(payload)
    return json.loads(payload[4 : 4 + size]), payload[4 + size :]


def refused(call: Callable[[], object], code: Code, says: str) -> HandshakeRejected:
    with pytest.raises(HandshakeRejected, match=says) as error:
        call()
    assert error.value.code is code
    assert not error.value.by_peer
    return error.value


def test_both_ends_learn_who_the_other_is_and_agree() -> None:
    asking, asked = agent(), server()
    challenge = asked.greeted(body(asking.hello()))
    assert asked.hello is not None
    assert (asked.hello.cluster, asked.hello.instance, asked.hello.software) == ("alpha", "pod-1", "tower-agent 0.1")
    proof = asking.challenged(body(challenge))
    assert asking.server == Identity("tower-0")
    assert asking.server_chain == [b"tower-0", b"issuer"]
    assert asked.proven(body(proof)) == Identity("alpha")
    assert asked.features == {"ack"}
    welcome = asking.answered(FrameType.WELCOME, body(asked.welcome("alpha-7")))
    assert welcome == Welcome("alpha-7", frozenset({"ack"}), renew_only=False)


def test_an_expired_identity_is_told_that_it_may_only_renew() -> None:
    asking, asked = agent(), server()
    proof = asking.challenged(body(asked.greeted(body(asking.hello()))))
    asked.proven(body(proof))
    assert asking.answered(FrameType.WELCOME, body(asked.welcome("t", renew_only=True))).renew_only


def test_the_transcripts_are_what_the_specification_says() -> None:
    seen: list[bytes] = []

    def sign(transcript: bytes) -> bytes:
        seen.append(transcript)
        return signer(KEY)(transcript)

    asking, asked = agent(sign=sign), server(sign=sign)
    hello = asking.hello()
    challenge = asked.greeted(body(hello))
    proof = asking.challenged(body(challenge))

    def transcript(label: bytes, *said: bytes) -> bytes:
        joined = b"".join(len(part).to_bytes(4, "big") + part for part in said)
        return b"tower.v1 " + label + b"\0" + hashlib.sha256(joined).digest()

    def own(frame: bytes) -> bytes:
        (size,) = U32.unpack_from(frame, HEADER_SIZE)
        return frame[HEADER_SIZE + 4 : HEADER_SIZE + 4 + size]

    assert seen == [
        transcript(b"challenge", hello, own(challenge)),
        transcript(b"proof", hello, body(challenge), own(proof)),
    ]


# ---- attacks ------------------------------------------------------------------------------------------------------


def test_a_replayed_proof_does_not_answer_a_fresh_challenge() -> None:
    asking, asked = agent(), server()
    proof = asking.challenged(body(asked.greeted(body(asking.hello()))))
    asked.proven(body(proof))
    again = server(nonce=bytes(32))
    again.greeted(body(asking.hello()))
    refused(lambda: again.proven(body(proof)), Code.BAD_SIGNATURE, "signature does not verify")


def test_a_replayed_challenge_does_not_answer_a_fresh_hello() -> None:
    challenge = server().greeted(body(agent().hello()))
    later = agent(nonce=bytes(32))
    refused(lambda: later.challenged(body(challenge)), Code.BAD_SIGNATURE, "signature does not verify")


def test_a_challenge_reflected_as_a_proof_is_none() -> None:
    asking, asked = agent(), server()
    challenge = asked.greeted(body(asking.hello()))
    refused(lambda: asked.proven(body(challenge)), Code.BAD_SIGNATURE, "signature does not verify")


def tampered(payload: bytes, **changes: Any) -> bytes:
    said, signature = parts(payload)
    return signed(json.dumps({**said, **changes}, separators=(",", ":")).encode(), signature)


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": base64.b64encode(bytes(32)).decode()},
        {"chain": [base64.b64encode(b"tower-1").decode()]},
        {"features": []},
        {"extra": 1},
    ],
)
def test_a_challenge_of_which_anything_was_changed_is_refused(change: dict[str, Any]) -> None:
    asking = agent()
    challenge = server().greeted(body(asking.hello()))
    refused(lambda: asking.challenged(tampered(body(challenge), **change)), Code.BAD_SIGNATURE, "does not verify")


@pytest.mark.parametrize("key", ["cluster", "instance", "software", "features", "nonce"])
def test_a_hello_that_was_changed_on_its_way_fails_at_the_agent(key: str) -> None:
    asking, asked = agent(), server()
    said = json.loads(body(asking.hello()))
    changed = {"cluster": "beta", "instance": "pod-2", "software": "x", "features": [], "nonce": said["nonce"]}
    changed["nonce"] = base64.b64encode(bytes(32)).decode()
    challenge = asked.greeted(json.dumps({**said, key: changed[key]}).encode())
    refused(lambda: asking.challenged(body(challenge)), Code.BAD_SIGNATURE, "does not verify")


def test_a_swapped_chain_in_a_proof_is_refused() -> None:
    asking, asked = agent(), server()
    proof = asking.challenged(body(asked.greeted(body(asking.hello()))))
    swapped = tampered(body(proof), chain=[base64.b64encode(b"beta").decode()])
    refused(lambda: asked.proven(swapped), Code.BAD_SIGNATURE, "does not verify")


def test_a_valid_agent_of_another_cluster_is_refused() -> None:
    asking, asked = agent(chain=[b"beta"]), server()
    proof = asking.challenged(body(asked.greeted(body(asking.hello()))))
    refused(
        lambda: asked.proven(body(proof)),
        Code.WRONG_CLUSTER,
        "the identity belongs to cluster beta, the agent asked for alpha",
    )


def test_a_server_without_the_key_of_its_chain_is_refused() -> None:
    asking = agent()
    challenge = server(sign=signer(b"another")).greeted(body(asking.hello()))
    refused(lambda: asking.challenged(body(challenge)), Code.BAD_SIGNATURE, "does not verify")


def test_features_that_were_not_offered_cannot_be_chosen() -> None:
    asking = agent(features=[])
    other = agent(features=["ack"])
    challenge = server().greeted(body(other.hello()))
    refused(lambda: asking.challenged(body(challenge)), Code.PROTOCOL, "features that were not offered")


def test_no_version_in_common() -> None:
    said = json.loads(body(agent().hello()))
    for versions in ([2, 3], [], "1", None):
        hello = json.dumps({**said, "versions": versions}).encode()
        refused(lambda hello=hello: server().greeted(hello), Code.VERSION, "no version in common: this server speaks 1")
    asking = agent()
    challenge = tampered(body(server().greeted(body(asking.hello()))), version=2)
    refused(lambda: asking.challenged(challenge), Code.VERSION, "the server chose version 2")


def test_a_newer_agent_that_also_speaks_this_version_is_welcome() -> None:
    said = json.loads(body(agent().hello()))
    hello = {**said, "versions": [2, 1], "features": ["ack", "unheard-of"], "something": {"new": 1}}
    asked = server()
    asked.greeted(json.dumps(hello).encode())
    assert asked.features == {"ack"}


# ---- malformed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cluster": ""}, "cluster is missing or not a name"),
        ({"cluster": 7}, "cluster is missing"),
        ({"cluster": "a\nb"}, "cluster is missing"),
        ({"cluster": "x" * 254}, "cluster is missing"),
        ({"instance": None}, "instance is missing"),
        ({"nonce": "AAAA"}, "a nonce of 3 bytes, expected 32"),
        ({"nonce": "not base64!"}, "nonce is not base64"),
        ({"nonce": None}, "nonce is not base64"),
        ({"nonce": base64.b64encode(bytes(33)).decode()}, "nonce has 33 bytes, at most 32"),
        ({"features": "ack"}, "features is not a short list"),
        ({"features": ["x"] * 33}, "features is not a short list"),
        ({"features": ["x" * 65]}, "features is not a short list"),
        ({"features": [1]}, "features is not a short list"),
    ],
)
def test_a_malformed_hello_is_refused(change: dict[str, Any], says: str) -> None:
    said = json.loads(body(agent().hello()))
    refused(lambda: server().greeted(json.dumps({**said, **change}).encode()), Code.PROTOCOL, says)


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"versions": [1]', "not JSON"),
        (b"[" * 10_000, "not JSON"),
        (b'{"nonce": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
    ids=["empty", "not UTF-8", "a list", "truncated", "deep", "a huge number"],
)
def test_bytes_that_are_no_message_are_refused(payload: bytes, says: str) -> None:
    refused(lambda: server().greeted(payload), Code.PROTOCOL, says)


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "cut short"),
        (b"\0\0\0", "cut short"),
        (U32.pack(100) + b"{}", "lengths do not fit"),
        (U32.pack(2**32 - 1) + b"{}x", "lengths do not fit"),
        (signed(b"{}", b""), "lengths do not fit"),
        (signed(b"{}", bytes(MAX_SIGNATURE_BYTES + 1)), "lengths do not fit"),
        (signed(b"{}"), "chain is not a list"),
        (signed(b'{"chain": []}'), "chain is not a list"),
        (signed(json.dumps({"chain": ["QQ=="] * (MAX_CHAIN + 1)}).encode()), "chain is not a list"),
        (signed(b'{"chain": [7]}'), "a certificate is not base64"),
        (signed(b'{"chain": [""]}'), "a certificate has 0 bytes"),
        (
            signed(json.dumps({"chain": [base64.b64encode(bytes(MAX_CERTIFICATE_BYTES + 1)).decode()]}).encode()),
            "a certificate has 4097 bytes",
        ),
    ],
)
def test_a_malformed_proof_is_refused_before_anything_is_verified(payload: bytes, says: str) -> None:
    def never(*_: object) -> Identity:
        raise AssertionError("verified something malformed")

    asked = server(verify=never)
    asked.greeted(body(agent().hello()))
    refused(lambda: asked.proven(payload), Code.PROTOCOL, says)


def test_a_proof_comes_after_a_hello() -> None:
    refused(lambda: server().proven(signed(b"{}")), Code.PROTOCOL, "PROOF before HELLO")


@given(st.binary(max_size=200), st.integers(0, 3))
def test_any_bytes_at_any_step_end_in_a_refusal(raw: bytes, step: int) -> None:
    asking, asked = agent(), server()
    challenge = asked.greeted(body(asking.hello()))
    calls = [
        lambda: asked.greeted(raw),
        lambda: asked.proven(raw),
        lambda: asking.challenged(raw),
        lambda: (asking.challenged(body(challenge)), asking.answered(FrameType.WELCOME, raw)),
    ]
    with pytest.raises(HandshakeRejected):
        calls[step]()


def test_a_message_that_the_peer_would_refuse_is_not_sent() -> None:
    with pytest.raises(HandshakeRejected, match="CHALLENGE would take") as error:
        server(chain=[bytes(MAX_HANDSHAKE_BYTES)]).greeted(body(agent().hello()))
    assert error.value.code is Code.TOO_LARGE


@pytest.mark.parametrize("make", [agent, server])
def test_a_nonce_of_another_size_is_a_mistake_of_the_caller(make: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        make(nonce=b"short")


# ---- the verdict --------------------------------------------------------------------------------------------------


def test_a_rejection_carries_code_text_and_when_to_come_back() -> None:
    error = parse_reject(body(reject(Code.BUSY, "too many handshakes now", 2.5)))
    assert (error.code, error.text, error.retry_after, error.by_peer) == (
        Code.BUSY,
        "too many handshakes now",
        2.5,
        True,
    )
    with pytest.raises(HandshakeRejected, match="revoked") as raised:
        agent().answered(FrameType.REJECT, body(reject(Code.REVOKED, "revoked by an operator")))
    assert raised.value.retry_after is None


@pytest.mark.parametrize(
    ("said", "code", "text", "retry_after"),
    [
        ({}, Code.INTERNAL, "the peer gave no reason", None),
        ({"code": 9999, "text": "new\x1b[2J", "retry_after": -1}, Code.INTERNAL, "new?[2J", None),
        ({"code": "52", "text": 5, "retry_after": "1"}, Code.INTERNAL, "the peer gave no reason", None),
        ({"code": 52, "text": "x", "retry_after": 1e300}, Code.BUSY, "x", None),
        ({"code": 52, "text": "x", "retry_after": float("nan")}, Code.BUSY, "x", None),
        ({"code": 52, "text": "\ud800", "retry_after": 0}, Code.BUSY, "?", 0.0),
    ],
)
def test_a_strange_rejection_is_read_with_care(said: dict, code: Code, text: str, retry_after: float | None) -> None:
    error = parse_reject(json.dumps(said).encode())
    assert (error.code, error.text, error.retry_after) == (code, text, retry_after)


def test_another_frame_in_place_of_the_verdict_is_refused() -> None:
    refused(lambda: agent().answered(FrameType.PING, b"{}"), Code.PROTOCOL, "type 17 in place of WELCOME")
    refused(lambda: agent().answered(FrameType.WELCOME, b"{}"), Code.PROTOCOL, "tunnel is missing or not a name")


@pytest.mark.parametrize(
    ("resume", "says"),
    [
        ("t-1", "resume is not an object"),
        ({"tunnel": "", "epoch": 2, "received": 0}, "tunnel is missing or not a name"),
        ({"tunnel": "t-1", "epoch": -1, "received": 0}, "epoch is missing or not a count"),
        ({"tunnel": "t-1", "epoch": 2, "received": True}, "received is missing or not a count"),
        ({"tunnel": "t-1", "epoch": 2, "received": 2**63}, "received is missing or not a count"),
    ],
)
def test_a_malformed_resume_is_refused_before_anything_is_verified(resume: object, says: str) -> None:
    asked = server(verify=lambda *_: pytest.fail("verified something malformed"))
    asked.greeted(body(agent().hello()))
    chain = [base64.b64encode(b"alpha").decode()]
    proof = signed(json.dumps({"chain": chain, "resume": resume}).encode())
    refused(lambda: asked.proven(proof), Code.PROTOCOL, says)
    assert asked.resume is None


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"tunnel": "t-2", "received": 7}, "answered a resume with another tunnel"),
        ({"tunnel": "t-1", "received": 7, "renew_only": True}, "answered a resume with another tunnel"),
        ({"tunnel": "t-1"}, "received is missing or not a count"),
        ({"tunnel": "t-1", "refused": {"code": 54, "text": "not what was asked for"}}, "received is missing"),
    ],
)
def test_a_resume_goes_on_with_its_own_tunnel_or_not_at_all(answer: dict[str, Any], says: str) -> None:
    asking, asked = agent(), server()
    asking.resume = Resume("t-1", 2, 5)
    asked.proven(body(asking.challenged(body(asked.greeted(body(asking.hello()))))))
    assert asked.resume == asking.resume
    refused(lambda: asking.answered(FrameType.WELCOME, json.dumps(answer).encode()), Code.PROTOCOL, says)
