"""A request to renew counts only with the signature of the identity that it renews."""

from dataclasses import replace

import pytest

from certs.ca import Authority
from certs.errors import IssueRefused
from certs.keys import generate_key, make_csr, signer
from certs.renewal import check_renewal, prove_renewal

NOW = 1_800_000_000.0


@pytest.fixture
def agent():
    authority, key = Authority.create("hq", at=NOW), generate_key()
    issued = authority.issue_agent("edge-1", "a1", public_key=key.public_key(), at=NOW)
    return authority.bundle.verify_agent(issued.chain_der, NOW), key


def proof_of(key, identity, csr, serving):
    return prove_renewal(
        signer(key), host=identity.host, cluster=identity.cluster, agent=identity.agent, csr=csr, serving_csr=serving
    )


def test_both_requests_are_the_holders_own(agent):
    identity, key = agent
    csr, serving = make_csr(generate_key()), make_csr(generate_key())
    check_renewal(identity, proof_of(key, identity, csr, serving), csr=csr, serving_csr=serving)


@pytest.mark.parametrize("field", ["csr", "serving_csr"])
def test_neither_request_can_be_swapped(agent, field):
    identity, key = agent
    asked = {"csr": make_csr(generate_key()), "serving_csr": make_csr(generate_key())}
    proof = proof_of(key, identity, asked["csr"], asked["serving_csr"])
    with pytest.raises(IssueRefused, match="not signed by the identity of agent a1 of edge-1"):
        check_renewal(identity, proof, **(asked | {field: make_csr(generate_key())}))


def test_a_proof_is_for_one_agent_and_by_its_key(agent):
    identity, key = agent
    csr, serving = make_csr(generate_key()), make_csr(generate_key())
    for other in (replace(identity, cluster="edge-2"), replace(identity, agent="a2"), replace(identity, host="hq-2")):
        with pytest.raises(IssueRefused):
            check_renewal(other, proof_of(key, identity, csr, serving), csr=csr, serving_csr=serving)
    for proof in (b"", b"x" * 200, proof_of(generate_key(), identity, csr, serving)):
        with pytest.raises(IssueRefused):
            check_renewal(identity, proof, csr=csr, serving_csr=serving)
