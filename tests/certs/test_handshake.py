from __future__ import annotations

from typing import Any

import pytest

from certs.ca import Authority
from certs.generation import Issued
from certs.handshake import agent_verifier, server_verifier
from certs.keys import PrivateKey, generate_key, signer
from certs.peers import RENEWAL_GRACE, AgentIdentity, ServerIdentity
from certs.revocation import RevocationList
from protocol.constants import Code
from protocol.errors import HandshakeRejected
from protocol.frames import HEADER_SIZE
from protocol.handshake import AgentHandshake, ServerHandshake
from tests.certs.conftest import AT, DAY


def shake(
    authority: Authority,
    agent: Issued,
    agent_key: PrivateKey,
    server: Issued,
    server_key: PrivateKey,
    *,
    at: float = AT,
    revoked: RevocationList | None = None,
    grace: float = 0.0,
    cluster: str = "edge-1",
) -> tuple[AgentIdentity, ServerIdentity]:
    agent_end = AgentHandshake(
        cluster=cluster,
        instance="i1",
        chain=agent.chain_der,
        sign=signer(agent_key),
        verify=server_verifier(authority.bundle, lambda: at),
        nonce=b"a" * 32,
    )
    server_end = ServerHandshake(
        chain=server.chain_der,
        sign=signer(server_key),
        verify=agent_verifier(lambda: authority.bundle, lambda: at, lambda: revoked, allow_expired_for=grace),
        nonce=b"b" * 32,
    )
    challenge = server_end.greeted(agent_end.hello()[HEADER_SIZE:])
    proof = agent_end.challenged(challenge[HEADER_SIZE:])
    identity: Any = server_end.proven(proof[HEADER_SIZE:])
    return identity, agent_end.server


def test_both_ends_learn_who_the_other_is(authority: Authority, every_kind: dict[str, Issued], key: PrivateKey) -> None:
    agent, server = shake(authority, every_kind["agent"], key, every_kind["server"], key)
    assert (agent.cluster, agent.agent, server.name) == ("edge-1", "a1", "s1")


def refused(authority: Authority, every_kind: dict[str, Issued], key: PrivateKey, **changes: Any) -> HandshakeRejected:
    parts: dict[str, Any] = {
        "agent": every_kind["agent"],
        "agent_key": key,
        "server": every_kind["server"],
        "server_key": key,
    }
    with pytest.raises(HandshakeRejected) as caught:
        shake(authority, **(parts | changes))
    return caught.value


def test_each_refusal_has_its_code_and_its_cause(
    authority: Authority, other_authority: Authority, every_kind: dict[str, Issued], key: PrivateKey
) -> None:
    def case(**changes: Any) -> HandshakeRejected:
        return refused(authority, every_kind, key, **changes)

    public = key.public_key()
    stranger = other_authority.issue_agent("edge-1", "a1", public_key=public, at=AT)
    impostor = other_authority.issue_server("s1", [], public_key=public, at=AT)
    revoked = RevocationList(1, "hq", AT, agents={("edge-1", "*"): AT})
    for refusal, code, says in (
        (case(agent_key=generate_key()), Code.BAD_SIGNATURE, "did not sign"),
        (case(server_key=generate_key()), Code.BAD_SIGNATURE, "did not sign"),
        (case(agent=stranger), Code.UNTRUSTED, "not issued by the tower CA of hq"),
        (case(server=impostor), Code.UNTRUSTED, "not issued by the tower CA of hq"),
        (case(agent=every_kind["client"]), Code.UNTRUSTED, "caller's certificate was shown"),
        (case(server=every_kind["serving"]), Code.UNTRUSTED, "serving certificate was shown"),
        (case(at=AT + 8 * DAY), Code.EXPIRED, "expired at"),
        (case(revoked=revoked), Code.REVOKED, "was revoked"),
        (case(cluster="edge-2"), Code.WRONG_CLUSTER, "edge-1"),
        # what is proven of an agent of edge-1 says nothing of edge-2
        (case(cluster="edge-2", revoked=revoked), Code.WRONG_CLUSTER, "edge-1"),
        (case(cluster="edge-2", at=AT + 8 * DAY), Code.WRONG_CLUSTER, "edge-1"),
        (case(cluster="edge-2", agent_key=generate_key()), Code.BAD_SIGNATURE, "did not sign"),
    ):
        assert refusal.code is code
        assert says in refusal.text


def test_an_expired_agent_is_known_as_one_that_may_only_renew(
    authority: Authority, every_kind: dict[str, Issued], key: PrivateKey
) -> None:
    at = AT + 10 * DAY
    identity, _ = shake(authority, every_kind["agent"], key, every_kind["server"], key, at=at, grace=RENEWAL_GRACE)
    assert identity.expired(at)
