from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.ca import Authority
from certs.enrolment import AgentEnrolment, EnrolmentReply, EnrolmentRequest, Received, receive
from certs.errors import CertsError, FingerprintMismatch, IssueRefused, MessageError, SealError
from certs.keys import PrivateKey, generate_key, make_csr, public_key_from_csr, signer
from certs.peers import AgentIdentity
from certs.revocation import RevocationList
from certs.sealing import Sealer, check_offer
from certs.token import EnrolmentToken, hash_secret, secret_matches
from tests.certs.conftest import AT


@dataclass
class Join:
    """One member joining: the server's end and the agent's, and the answer that the server would give."""

    authority: Authority
    sealer: Sealer
    token: EnrolmentToken
    key: PrivateKey
    serving_key: PrivateKey
    enrolment: AgentEnrolment

    def received(self) -> Received:
        return receive(self.enrolment.request, sealer=self.sealer, host="hq", at=AT)

    def answer(self, authority: Authority | None = None, **changes: Any) -> EnrolmentReply:
        authority = authority or self.authority
        request = self.received().request
        serving = public_key_from_csr(request.serving_csr)
        reply = EnrolmentReply(
            host="hq",
            cluster="edge-1",
            agent="a1",
            chain=authority.issue_agent("edge-1", "a1", public_key=public_key_from_csr(request.csr), at=AT).chain_pem,
            serving_chain=authority.issue_serving("edge-1", public_key=serving, at=AT).chain_pem,
            trust=authority.bundle.to_pem(),
            revocations=RevocationList(3, "hq", AT, users={"eve": AT}).sign(authority.revocation_signer()),
        )
        return replace(reply, **changes)

    def open(self, data: bytes) -> tuple[EnrolmentReply, AgentIdentity]:
        return self.enrolment.open_reply(
            data, public_key=self.key.public_key(), serving_key=self.serving_key.public_key(), at=AT
        )


def joining(authority: Authority) -> Join:
    server_key, key, serving_key = generate_key(), generate_key(), generate_key()
    issued = authority.issue_server("s1", [], public_key=server_key.public_key(), at=AT)
    sealer = Sealer(bundle=authority.bundle, chain_pem=issued.chain_pem, sign=signer(server_key))
    token = EnrolmentToken.create(url="https://tower:8443", cluster="edge-1", ca=authority.bundle.fingerprint)
    offer = check_offer(sealer.offer(AT), ca=token.ca, at=AT)
    enrolment = AgentEnrolment(offer, token, csr=make_csr(key), serving_csr=make_csr(serving_key))
    return Join(authority, sealer, token, key, serving_key, enrolment)


@pytest.fixture
def join(authority: Authority) -> Join:
    return joining(authority)


def test_a_member_joins(join: Join) -> None:
    received = join.received()
    assert received.token_id == join.token.id
    assert secret_matches(received.request.secret, hash_secret(join.token.secret))
    reply, identity = join.open(received.seal_reply(join.answer()))
    assert (identity.host, identity.cluster, identity.agent) == ("hq", "edge-1", "a1")
    assert reply.trust == join.authority.bundle.to_pem()


def test_nothing_of_the_secret_is_seen_on_the_way(join: Join) -> None:
    assert join.token.secret.encode() not in join.enrolment.request
    assert make_csr(join.key)[40:80] not in join.enrolment.request
    assert join.token.secret not in repr(join.received())


def test_no_reply_key_or_list_is_needed_twice(join: Join) -> None:
    """The same attempt sent twice is opened twice: a lost answer costs nothing."""
    assert join.received().request == join.received().request
    join.open(join.received().seal_reply(join.answer()))
    join.open(join.received().seal_reply(join.answer(revocations=b"")))


def test_a_request_cannot_be_moved_to_another_token_or_host(join: Join) -> None:
    moved = json.loads(join.enrolment.request) | {"id": "0123456789abcdef"}
    with pytest.raises(SealError, match=r"altered, or is meant for someone else"):
        receive(json.dumps(moved).encode(), sealer=join.sealer, host="hq", at=AT)
    with pytest.raises(SealError, match=r"altered, or is meant for someone else"):
        receive(join.enrolment.request, sealer=join.sealer, host="elsewhere", at=AT)


@pytest.mark.parametrize("id_", ["../x", "UPPERCASE", "a b c d e f", "é" * 16, "0123456\n"])
def test_what_no_token_is_called_is_looked_up_nowhere(join: Join, id_: str) -> None:
    sealed = AgentEnrolment(
        check_offer(join.sealer.offer(AT), ca=join.token.ca, at=AT),
        replace(join.token, id=id_),
        csr=b"c",
        serving_csr=b"s",
    )
    with pytest.raises(MessageError, match=r"'id' is not that of a token"):
        receive(sealed.request, sealer=join.sealer, host="hq", at=AT)


def test_an_answer_to_another_request_is_refused(join: Join, authority: Authority) -> None:
    second = joining(authority)
    with pytest.raises(SealError, match=r"altered, or is meant for someone else"):
        join.open(second.received().seal_reply(second.answer()))


@pytest.mark.parametrize(
    "changes",
    [{"host": "elsewhere"}, {"cluster": "edge-2"}, {"agent": "a2"}],
)
def test_an_answer_that_contradicts_its_certificates_is_refused(join: Join, changes: dict[str, str]) -> None:
    with pytest.raises(SealError, match=r"another host, cluster or key"):
        join.open(join.received().seal_reply(join.answer(**changes)))


def test_an_answer_for_another_key_or_cluster_is_refused(join: Join) -> None:
    issue, other = join.authority, generate_key().public_key()
    mine, serving = join.key.public_key(), join.serving_key.public_key()
    for changes in (
        {"chain": issue.issue_agent("edge-1", "a1", public_key=other, at=AT).chain_pem},
        {"serving_chain": issue.issue_serving("edge-1", public_key=other, at=AT).chain_pem},
        {"serving_chain": issue.issue_serving("edge-2", public_key=serving, at=AT).chain_pem},
        {"chain": issue.issue_agent("edge-2", "a1", public_key=mine, at=AT).chain_pem, "cluster": "edge-2"},
    ):
        with pytest.raises(SealError, match=r"another host, cluster or key"):
            join.open(join.received().seal_reply(join.answer(**changes)))


def test_an_answer_under_another_root_is_refused(join: Join, other_authority: Authority) -> None:
    with pytest.raises(FingerprintMismatch, match=join.token.ca):
        join.open(join.received().seal_reply(join.answer(other_authority)))


def test_an_answer_with_a_foreign_list_or_a_wrong_kind_is_refused(join: Join, other_authority: Authority) -> None:
    foreign = RevocationList(1, "hq", AT).sign(other_authority.revocation_signer())
    good = join.answer()
    for changes, says in (
        ({"revocations": foreign}, "not signed by the clients issuer"),
        ({"chain": good.serving_chain}, "was shown where an agent's identity is needed"),
        ({"trust": b"x"}, "trust bundle cannot be read"),
        ({"chain": b"x"}, "chain cannot be read"),
    ):
        with pytest.raises(SealError, match=says) as caught:
            join.open(join.received().seal_reply(replace(good, **changes)))
        assert caught.value.fault == "TWR224"


def test_a_bad_csr_inside_a_good_seal_is_refused_by_the_authority(join: Join) -> None:
    request = replace(join.received().request, csr=b"nonsense")
    with pytest.raises(IssueRefused, match=r"CSR cannot be read"):
        public_key_from_csr(EnrolmentRequest.decode(request.encode()).csr)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"nonce": b"short"}, "wrong length"),
        ({"reply_key": b"short"}, "wrong length"),
        ({"secret": "x" * 65}, "'secret'"),
        ({"csr": b"x" * 9000}, "'csr'"),
        ({"csr": b""}, "'csr'"),
    ],
)
def test_requests_are_bounded(join: Join, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CertsError, match=says):
        EnrolmentRequest.decode(replace(join.received().request, **changes).encode())


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"x" * 70_000, b'{"id":"a","key":"b","sealed":"!"}'])
def test_what_is_no_enrolment_is_refused(join: Join, body: bytes) -> None:
    with pytest.raises(MessageError, match=r"the enrolment"):
        receive(body, sealer=join.sealer, host="hq", at=AT)


SAMPLE = joining(Authority.create("hq", at=AT))


@given(st.data())
def test_an_altered_request_never_opens_as_another(data: st.DataObject) -> None:
    body = bytearray(SAMPLE.enrolment.request)
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        received = receive(bytes(body), sealer=SAMPLE.sealer, host="hq", at=AT)
    except (MessageError, SealError):
        return
    assert received == SAMPLE.received()
