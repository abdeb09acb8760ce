"""A peer of the release before: the same frames, and none of the features that it does not know."""

from __future__ import annotations

from itertools import product

import pytest

from protocol.constants import FEATURE_ACK, FEATURE_RESUME, HEADER_SIZE, Code, FrameType
from protocol.handshake import AgentHandshake, ServerHandshake
from tests.protocol.handshakes import signer, verifier
from tests.protocol.playbook import Playbook, data

ALL, NONE, ACK = frozenset({FEATURE_ACK, FEATURE_RESUME}), frozenset[str](), frozenset({FEATURE_ACK})


@pytest.mark.parametrize(("agent", "server"), list(product([ALL, ACK, NONE, ALL | {"later"}], repeat=2)))
def test_both_ends_go_by_what_both_of_them_know(agent: frozenset[str], server: frozenset[str]) -> None:
    asks = AgentHandshake(
        cluster="edge-1",
        instance="pod-a",
        chain=[b"edge-1"],
        sign=signer(b"agents"),
        verify=verifier(b"servers"),
        nonce=bytes(32),
        features=agent,
    )
    answers = ServerHandshake(
        chain=[b"tower"], sign=signer(b"servers"), verify=verifier(b"agents"), nonce=bytes(32), features=server
    )
    challenge = answers.greeted(asks.hello()[HEADER_SIZE:])
    answers.proven(asks.challenged(challenge[HEADER_SIZE:])[HEADER_SIZE:])
    welcome = asks.answered(FrameType.WELCOME, answers.welcome("t-1")[HEADER_SIZE:])
    assert welcome.features == answers.features == agent & server


@pytest.mark.parametrize("features", [NONE, ACK])
@pytest.mark.parametrize("opens_odd", [True, False])
def test_without_resume_a_lost_link_ends_the_tunnel_at_once(features: frozenset[str], opens_odd: bool) -> None:
    book = Playbook(features=features, opens_odd=opens_odd, accepts=not opens_odd)
    if not opens_odd:
        book.opened()
        assert book.hears(data(1)) == [(1, b"data")]
        book.after(1.0)
        assert any(line.startswith("ACK") for line in book.says()) is (FEATURE_ACK in features)
    book.session.detach(book.now, "the plug")
    assert book.session.lost is not None
    assert book.session.lost.code is Code.TUNNEL_LOST
