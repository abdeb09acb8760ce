"""What the root, the issuers and the certificates under them are, as others see them."""

from __future__ import annotations

import datetime as dt
import itertools

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509 import verification
from cryptography.x509.oid import NameOID

from certs.ca import Authority
from certs.generation import Generation, Issued
from certs.issuers import ISSUERS
from certs.keys import PrivateKey
from protocol import defaults
from tests.certs.conftest import AT, DAY


def test_root_and_issuers_have_their_lifetimes_and_path_lengths(authority: Authority) -> None:
    root = authority.bundle.root
    assert root.not_valid_after_utc.timestamp() == AT + defaults.CA_DAYS * DAY
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 1
    assert {issuer.name for issuer, _ in authority.bundle.issuers} == {
        "tower-servers",
        "agent-serving",
        "agents",
        "clients",
    }
    for _, certificate in authority.bundle.issuers:
        assert certificate.not_valid_after_utc.timestamp() == AT + defaults.ISSUER_DAYS * DAY
        assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def test_an_issuer_that_is_added_late_ends_with_its_root() -> None:
    whole = Generation.create("hq", AT)
    old = Generation(whole.root, {name: each for name, each in whole.issuers.items() if name != "replicas"})
    assert not old.complete
    late = old.completed("hq", AT + (defaults.CA_DAYS - 10) * DAY)
    assert late.complete
    assert late.issuers["replicas"].ends == whole.root.ends
    assert all(late.issuers[name] is old.issuers[name] for name in ISSUERS if name != "replicas")


def test_serial_numbers_do_not_repeat_or_count(authority: Authority, key: PrivateKey) -> None:
    serials = [authority.issue_agent("e", "a", public_key=key.public_key(), at=AT).serial for _ in range(20)]
    assert len(set(serials)) == 20
    assert all(abs(a - b) > 1 << 64 for a, b in itertools.pairwise(serials))


def test_another_implementation_accepts_servers_and_clients(
    authority: Authority, every_kind: dict[str, Issued]
) -> None:
    store = verification.Store([authority.bundle.root])
    builder = verification.PolicyBuilder().store(store).time(dt.datetime.fromtimestamp(AT, dt.UTC))
    for kind, name in (
        ("server", "tower.example"),
        ("server", "edge-9.members.tower"),
        ("serving", "edge-1.members.tower"),
    ):
        verifier = builder.build_server_verifier(x509.DNSName(name))
        assert len(verifier.verify(every_kind[kind].certificate, [every_kind[kind].issuer])) == 3
    for kind in ("client", "agent"):
        verified = builder.build_client_verifier().verify(every_kind[kind].certificate, [every_kind[kind].issuer])
        assert verified.subjects is not None
    with pytest.raises(verification.VerificationError):
        builder.build_server_verifier(x509.DNSName("edge-1.members.tower")).verify(
            every_kind["agent"].certificate, [every_kind["agent"].issuer]
        )


def test_a_leaf_cannot_sign(authority: Authority, every_kind: dict[str, Issued], key: PrivateKey) -> None:
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tower:hq:admin")]))
        .issuer_name(every_kind["client"].certificate.subject)
        .public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
        .serial_number(1)
        .not_valid_before(dt.datetime.fromtimestamp(AT, dt.UTC))
        .not_valid_after(dt.datetime.fromtimestamp(AT + DAY, dt.UTC))
        .sign(key, SHA256())
    )
    builder = verification.PolicyBuilder().store(verification.Store([authority.bundle.root]))
    verifier = builder.time(dt.datetime.fromtimestamp(AT, dt.UTC)).build_client_verifier()
    with pytest.raises(verification.VerificationError):
        verifier.verify(forged, [every_kind["client"].certificate, every_kind["client"].issuer])
