from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.ca import Authority
from certs.errors import AuthorityError, IssueRefused, Untrusted
from certs.generation import Issued
from certs.keys import PrivateKey, generate_key, public_key_from_csr
from protocol import defaults
from tests.certs.conftest import AT, DAY, HOUR


def names_in(issued: Issued) -> list[str]:
    value = issued.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(each.value) for each in value]


def common_name(certificate: x509.Certificate) -> str:
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def test_an_authority_comes_back_from_its_pem(authority: Authority) -> None:
    again = Authority.from_pem(authority.to_pem())
    assert again.host == "hq"
    assert again.bundle.fingerprint == authority.bundle.fingerprint
    issued = again.issue_agent("edge-1", "a1", public_key=generate_key().public_key(), at=AT)
    assert authority.bundle.verify_agent(issued.chain_der, AT).agent == "a1"


def damaged(pem: bytes) -> list[tuple[bytes, str]]:
    blocks = re.findall(rb"-----BEGIN .+?-----END [A-Z ]+-----\n", pem, re.DOTALL)
    return [
        (b"", "cannot be read"),
        (pem[: len(pem) // 2], "cannot be read|lacks"),
        (b"".join(blocks[:-1]), "lacks the key of its replicas"),
        (b"".join(blocks[:-4]), "lacks the issuers clients"),
        (b"".join(blocks[2:]), "holds 0 roots"),
        (pem.replace(blocks[3], blocks[5]), "lacks the key"),
    ]


@pytest.mark.parametrize("case", range(6))
def test_a_damaged_authority_says_what_is_missing(authority: Authority, case: int) -> None:
    pem, says = damaged(authority.to_pem())[case]
    with pytest.raises(AuthorityError, match=says):
        Authority.from_pem(pem)


def before_replicas(authority: Authority) -> Authority:
    """As one that was made and kept before there was an issuer of replicas."""
    blocks = re.findall(rb"-----BEGIN .+?-----END [A-Z ]+-----\n", authority.to_pem(), re.DOTALL)
    return Authority.from_pem(b"".join(blocks[:-2]), number=authority.number)


def test_an_authority_of_before_gets_the_issuer_of_replicas_under_its_own_root(
    authority: Authority, key: PrivateKey
) -> None:
    old = before_replicas(authority)
    assert not old.complete
    new = Authority.from_pem(old.completed(at=AT + DAY).to_pem())
    assert new.complete
    assert new.bundle.to_pem() == old.bundle.to_pem(), "what agents and callers trust is the same"
    issued = new.issue_replica("tower-0", public_key=key.public_key(), at=AT + DAY)
    assert new.inner_bundle.verify_replica(issued.chain_der, AT + DAY).name == "tower-0"


def test_in_the_middle_of_a_rotation_both_generations_are_completed(authority: Authority, key: PrivateKey) -> None:
    moving = Authority.create("hq", at=AT).with_next(at=AT + DAY)
    issued = moving.issue_replica("tower-0", public_key=key.public_key(), at=AT + DAY)
    moved = moving.switched()
    assert moved.complete
    assert moved.inner_bundle.verify_replica(issued.chain_der, AT + DAY).name == "tower-0"
    with pytest.raises(Untrusted, match="was not issued by"):
        moved.finished().inner_bundle.verify_replica(issued.chain_der, AT + DAY)


def test_issuers_of_another_root_are_refused(authority: Authority, other_authority: Authority) -> None:
    certificates = [other_authority.bundle.root, *(each for _, each in authority.bundle.issuers)]
    with pytest.raises(AuthorityError, match=r"not an issuer under its root"):
        type(authority.bundle).from_certificates(certificates)


def test_an_agents_certificate_says_who_it_is_and_nothing_else(every_kind: dict[str, Issued]) -> None:
    issued = every_kind["agent"]
    assert names_in(issued) == ["tower://hq/clusters/edge-1/agents/a1"]
    assert issued.not_before == AT - defaults.CERTIFICATE_BACKDATE
    assert issued.not_after == AT + 7 * DAY
    assert issued.serial.bit_length() > 96


def test_a_serving_certificate_is_the_clusters_alone(authority: Authority, key: PrivateKey) -> None:
    issued = authority.issue_serving("edge-1", ["mc-edge-1.tower.svc", "10.1.2.3"], public_key=key.public_key(), at=AT)
    assert names_in(issued) == [
        "tower://hq/clusters/edge-1/serving",
        "edge-1.members.tower",
        "mc-edge-1.tower.svc",
        "10.1.2.3",
    ]
    with pytest.raises(IssueRefused, match=r"not that cluster's alone"):
        authority.issue_serving("edge-1", ["edge-2.members.tower"], public_key=key.public_key(), at=AT)


def test_a_servers_certificate_takes_one_wildcard_only(authority: Authority, key: PrivateKey) -> None:
    public = key.public_key()
    issued = authority.issue_server("s1", ["Tower.example", "*.members.tower", "::1"], public_key=public, at=AT)
    assert names_in(issued) == ["tower://hq/servers/s1", "tower.example", "*.members.tower", "::1"]
    with pytest.raises(IssueRefused, match=r"wildcard \*\.example"):
        authority.issue_server("s1", ["*.example"], public_key=public, at=AT)
    with pytest.raises(IssueRefused, match=r"65 names.*at most 64"):
        authority.issue_server("s1", [f"h{i}" for i in range(65)], public_key=public, at=AT)


def test_a_callers_certificate_carries_user_and_groups(every_kind: dict[str, Issued]) -> None:
    subject = every_kind["client"].certificate.subject
    assert common_name(every_kind["client"].certificate) == "tower:hq:admin"
    assert [str(each.value) for each in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)] == [
        "tower:hq:cluster-admins"
    ]
    assert every_kind["client"].not_after == AT + 24 * HOUR


@pytest.mark.parametrize("ttl", [0, 59, 366 * DAY, float("nan"), float("inf")])
def test_lifetimes_are_bounded(authority: Authority, key: PrivateKey, ttl: float) -> None:
    with pytest.raises(IssueRefused, match=r"lifetime.*60 s to 365 d"):
        authority.issue_client("alice", public_key=key.public_key(), at=AT, ttl=ttl)


def test_nothing_outlives_its_issuer(authority: Authority, key: PrivateKey) -> None:
    end = AT + defaults.ISSUER_DAYS * DAY
    issued = authority.issue_client("alice", public_key=key.public_key(), at=end - DAY, ttl=30 * DAY)
    assert issued.not_after == end
    with pytest.raises(AuthorityError, match=r"clients issuer of hq has run out"):
        authority.issue_client("alice", public_key=key.public_key(), at=end)


@pytest.mark.parametrize(
    "issue",
    [
        lambda a, k: a.issue_agent("Edge", "a1", public_key=k, at=AT),
        lambda a, k: a.issue_agent("edge", "../a", public_key=k, at=AT),
        lambda a, k: a.issue_serving("edge.members.tower", public_key=k, at=AT),
        lambda a, k: a.issue_server("s/1", [], public_key=k, at=AT),
        lambda a, k: a.issue_client("a\r\nb", public_key=k, at=AT),
        lambda a, k: a.issue_client("system:admin", public_key=k, at=AT),
        lambda a, k: a.issue_client("alice", ["system:masters"], public_key=k, at=AT),
    ],
)
def test_bad_names_are_never_signed(
    authority: Authority, key: PrivateKey, issue: Callable[[Authority, object], Issued]
) -> None:
    with pytest.raises(IssueRefused) as caught:
        issue(authority, key.public_key())
    assert caught.value.mend
    assert caught.value.fault == "TWR505"


def test_of_a_request_only_the_key_is_taken(authority: Authority) -> None:
    key = generate_key()
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "system:admin")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("tower.example"), x509.UniformResourceIdentifier("tower://hq/clusters/edge-2/agents/a1")]
            ),
            critical=False,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), critical=False)
        .sign(key, SHA256())
    )
    public = public_key_from_csr(greedy.public_bytes(Encoding.PEM))
    issued = authority.issue_agent("edge-1", "a1", public_key=public, at=AT)
    assert names_in(issued) == ["tower://hq/clusters/edge-1/agents/a1"]
    assert not issued.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert list(issued.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]
    assert common_name(issued.certificate) == "a1"
