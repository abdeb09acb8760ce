from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from certs.ca import Authority
from certs.errors import AuthorityError, Reason, Untrusted
from certs.generation import Issued
from certs.issuers import CLIENT_AUTH, CLIENTS, SERVER_AUTH, leaf_key_usage
from certs.keys import PrivateKey, generate_key, key_fingerprint
from certs.peers import RENEWAL_GRACE
from certs.revocation import RevocationList
from certs.verify import TrustBundle, load_chain
from protocol import defaults
from tests.certs.conftest import AT, DAY, HOUR
from tests.certs.test_keys import ELLIPTIC, UNREAD

BACKDATE = defaults.CERTIFICATE_BACKDATE


def test_each_kind_is_who_it_says(authority: Authority, every_kind: dict[str, Issued], key: PrivateKey) -> None:
    bundle = authority.bundle
    agent = bundle.verify_agent(every_kind["agent"].chain_der, AT)
    assert (agent.host, agent.cluster, agent.agent) == ("hq", "edge-1", "a1")
    assert (agent.serial, agent.not_after) == (every_kind["agent"].serial, AT + 7 * DAY)
    assert key_fingerprint(agent.public_key) == key_fingerprint(key.public_key())
    server = bundle.verify_server(every_kind["server"].chain_der, AT)
    assert (server.host, server.name) == ("hq", "s1")
    assert bundle.verify_serving(every_kind["serving"].chain_der, AT).cluster == "edge-1"
    client = bundle.verify_client(every_kind["client"].chain_der, AT)
    assert (client.user, client.groups) == ("tower:hq:admin", ("tower:hq:cluster-admins",))
    assert (client.not_before, client.not_after) == (AT - BACKDATE, AT + 24 * HOUR)


def test_the_leaf_alone_is_enough(authority: Authority, every_kind: dict[str, Issued]) -> None:
    assert authority.bundle.verify_client(every_kind["client"].chain_der[:1], AT).user == "tower:hq:admin"


KINDS = ["server", "serving", "agent", "client", "replica"]


@pytest.mark.parametrize("shown", KINDS)
@pytest.mark.parametrize("wanted", KINDS)
def test_no_kind_passes_for_another(
    authority: Authority, every_kind: dict[str, Issued], shown: str, wanted: str
) -> None:
    verify: Callable[..., Any] = getattr(authority.inner_bundle, f"verify_{wanted}")
    if shown == wanted:
        verify(every_kind[shown].chain_der, AT)
        return
    with pytest.raises(Untrusted, match=r"was shown where") as caught:
        verify(every_kind[shown].chain_der, AT)
    assert caught.value.reason is Reason.WRONG_ROLE
    nouns = {"server": "tower server", "serving": "serving", "agent": "agent", "client": "caller"}
    nouns["replica"] = "replica"
    assert nouns[shown] in caught.value.text
    assert nouns[wanted] in caught.value.text
    assert caught.value.fault == ("TWR404" if wanted == "client" else "TWR507")


@pytest.mark.parametrize("wanted", KINDS)
def test_outside_of_the_hosts_servers_a_replica_is_nobody(
    authority: Authority, every_kind: dict[str, Issued], wanted: str
) -> None:
    with pytest.raises(Untrusted, match=r"not issued by the tower CA") as caught:
        getattr(authority.bundle, f"verify_{wanted}")(every_kind["replica"].chain_der, AT)
    assert caught.value.reason is Reason.UNKNOWN_ISSUER


def test_a_tower_of_the_same_name_is_a_stranger(other_authority: Authority, every_kind: dict[str, Issued]) -> None:
    for kind, issued in every_kind.items():
        with pytest.raises(Untrusted, match=other_authority.bundle.fingerprint[:16]) as caught:
            getattr(other_authority.bundle, f"verify_{kind}")(issued.chain_der, AT)
        assert caught.value.reason is Reason.UNKNOWN_ISSUER


def test_times(authority: Authority, every_kind: dict[str, Issued]) -> None:
    bundle, chain = authority.bundle, every_kind["client"].chain_der
    bundle.verify_client(chain, AT - BACKDATE)
    bundle.verify_client(chain, AT + 24 * HOUR)
    with pytest.raises(
        Untrusted, match=r"expired at 2027-01-16T08:00:00Z, and here it is 2027-01-16T08:00:01Z"
    ) as caught:
        bundle.verify_client(chain, AT + 24 * HOUR + 1)
    assert (caught.value.reason, caught.value.fault) == (Reason.EXPIRED, "TWR402")
    with pytest.raises(Untrusted, match=r"only from 2027-01-15T07:55:00Z.*clock") as caught:
        bundle.verify_client(chain, AT - BACKDATE - 1)
    assert caught.value.reason is Reason.NOT_YET_VALID


def test_an_expired_agent_may_be_let_in_to_renew(authority: Authority, every_kind: dict[str, Issued]) -> None:
    bundle, chain = authority.bundle, every_kind["agent"].chain_der
    later = AT + 7 * DAY + 1
    with pytest.raises(Untrusted, match=r"expired"):
        bundle.verify_agent(chain, later)
    identity = bundle.identify_agent(chain)
    identity.check(later, None, allow_expired_for=RENEWAL_GRACE)
    assert identity.expired(later)
    assert not identity.expired(AT)
    with pytest.raises(Untrusted, match=r"expired at .*correct the clock.*join again"):
        identity.check(later + RENEWAL_GRACE, None, allow_expired_for=RENEWAL_GRACE)


def test_a_revoked_agent_is_out_even_to_renew(authority: Authority, every_kind: dict[str, Issued]) -> None:
    revoked = RevocationList(1, "hq", AT, agents={("edge-1", "a1"): AT})
    identity = authority.bundle.identify_agent(every_kind["agent"].chain_der)
    for grace in (0.0, RENEWAL_GRACE):
        with pytest.raises(Untrusted, match=r"agent a1 of cluster edge-1 was revoked") as caught:
            identity.check(AT, revoked, allow_expired_for=grace)
        assert (caught.value.reason, caught.value.fault) == (Reason.REVOKED, "TWR209")


def test_a_kept_identity_is_checked_again(authority: Authority, every_kind: dict[str, Issued]) -> None:
    client = authority.bundle.verify_client(every_kind["client"].chain_der, AT)
    client.check(AT + HOUR, None)
    with pytest.raises(Untrusted, match=r"tower:hq:admin was revoked") as caught:
        client.check(AT + HOUR, RevocationList(1, "hq", AT, users={"tower:hq:admin": AT}))
    assert caught.value.fault == "TWR403"
    with pytest.raises(Untrusted, match=r"expired"):
        client.check(AT + 25 * HOUR, None)


def mint(authority: Authority, **changes: Any) -> list[bytes]:
    """A caller's certificate signed by the real clients issuer, but with `changes` that no authority would write."""
    signing = authority._generations[0].issuers[CLIENTS.name]
    ski = signing.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    user = changes.get("cn", "alice")
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, user)]
    subject += [x509.NameAttribute(NameOID.ORGANIZATION_NAME, each) for each in changes.get("groups", [])]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(signing.certificate.subject)
        .public_key(changes.get("key", generate_key()).public_key())
        .serial_number(7)
        .not_valid_before(dt.datetime.fromtimestamp(AT - 300, dt.UTC))
        .not_valid_after(dt.datetime.fromtimestamp(AT + 3600, dt.UTC))
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski), False)
        .add_extension(x509.BasicConstraints(changes.get("ca", False), None), True)
        .add_extension(leaf_key_usage(), True)
        .add_extension(x509.ExtendedKeyUsage(changes.get("usages", [CLIENT_AUTH])), False)
    )
    uris = changes.get("uris", [f"tower://hq/clients/{user}"])
    if uris:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(each) for each in uris]), False
        )
    if "unknown" in changes:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), changes["unknown"]
        )
    return [builder.sign(signing.key, SHA256()).public_bytes(Encoding.DER)]


def test_the_mint_itself_makes_a_good_one(authority: Authority) -> None:
    assert authority.bundle.verify_client(mint(authority, unknown=False), AT).user == "alice"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ca": True}, Reason.MALFORMED),
        ({"unknown": True}, Reason.MALFORMED),
        ({"uris": []}, Reason.MALFORMED),
        ({"usages": [SERVER_AUTH]}, Reason.WRONG_ROLE),
        ({"usages": [CLIENT_AUTH, SERVER_AUTH]}, Reason.WRONG_ROLE),
        ({"uris": ["tower://hq/clients/bob"]}, Reason.WRONG_ROLE),
        ({"uris": ["tower://hq/clusters/edge-1/agents/a1"]}, Reason.WRONG_ROLE),
        ({"uris": ["tower://other/clients/alice"]}, Reason.WRONG_ROLE),
        ({"uris": ["tower://hq/clients/alice", "tower://hq/clients/bob"]}, Reason.WRONG_ROLE),
        ({"cn": "a\r\nX: y", "uris": ["tower://hq/clients/a"]}, Reason.BAD_NAME),
        ({"groups": ["ok", "bad\x00"]}, Reason.BAD_NAME),
        ({"cn": "tower:other:admin", "uris": ["tower://hq/clients/tower%3Aother%3Aadmin"]}, Reason.BAD_NAME),
    ],
)
def test_the_issuers_signature_alone_is_not_enough(
    authority: Authority, changes: dict[str, Any], reason: Reason
) -> None:
    with pytest.raises(Untrusted) as caught:
        authority.bundle.verify_client(mint(authority, **changes), AT)
    assert caught.value.reason is reason
    assert caught.value.http_status == (403 if reason is Reason.BAD_NAME else 401)


@pytest.mark.parametrize("chain", [[], [b""], [b"garbage"], [b"\x30" * 20_000]])
def test_what_is_no_certificate_is_malformed(authority: Authority, chain: list[bytes]) -> None:
    with pytest.raises(Untrusted) as caught:
        authority.bundle.verify_client(chain, AT)
    assert caught.value.reason is Reason.MALFORMED


SAMPLE = Authority.create("hq", at=AT)
LEAF = SAMPLE.issue_client("alice", ["devs"], public_key=generate_key().public_key(), at=AT).chain_der[0]


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(st.tuples(st.integers(0, len(LEAF) - 1), st.integers(1, 255)))
def test_no_altered_byte_makes_somebody_else(change: tuple[int, int]) -> None:
    altered = bytearray(LEAF)
    altered[change[0]] ^= change[1]
    try:
        found = SAMPLE.bundle.verify_client([bytes(altered)], AT)
    except Untrusted:
        return
    # Outside of what is signed: the count of unused bits before the signature may be read past.
    assert found == SAMPLE.bundle.verify_client([LEAF], AT)


def test_a_bundle_comes_back_from_its_pem(authority: Authority, every_kind: dict[str, Issued]) -> None:
    again = TrustBundle.from_pem(authority.bundle.to_pem())
    assert again.fingerprint == authority.bundle.fingerprint
    assert len(again.fingerprint) == 64
    assert again.verify_agent(every_kind["agent"].chain_der, AT).cluster == "edge-1"


def test_a_bundle_is_refused_before_a_key_is_read_whose_check_would_take_hours(authority: Authority) -> None:
    odd = x509.load_der_x509_certificate(authority.bundle.root.public_bytes(Encoding.DER).replace(ELLIPTIC, UNREAD))
    with pytest.raises(AuthorityError, match=r"not that of a tower"):
        TrustBundle.from_certificates([odd, *authority.bundle.roots])


def test_a_bundle_takes_no_leaf_for_an_issuer(authority: Authority, every_kind: dict[str, Issued]) -> None:
    with pytest.raises(AuthorityError, match=r"not an issuer under its root"):
        TrustBundle.from_pem(authority.bundle.to_pem() + every_kind["agent"].chain_pem)


def test_a_bundle_is_bounded_and_readable(authority: Authority) -> None:
    for pem, says in (
        (b"", "cannot be read"),
        (b"x" * 70_000, "more than the 65536"),
        (authority.bundle.root_pem * 3, "3 roots"),
        (authority.bundle.root_pem * 2, "twice"),
    ):
        with pytest.raises(AuthorityError, match=says):
            TrustBundle.from_pem(pem)


def test_a_chain_is_read_leaf_first(every_kind: dict[str, Issued]) -> None:
    assert load_chain(every_kind["agent"].chain_pem) == every_kind["agent"].chain_der
    with pytest.raises(AuthorityError, match=r"cannot be read"):
        load_chain(b"nothing")
