from __future__ import annotations

from certs.ca import Authority
from certs.issuers import ISSUERS, ca_key_usage, leaf_key_usage


def test_the_kinds_that_callers_and_agents_show_cannot_serve() -> None:
    from certs.issuers import SERVER_AUTH

    assert SERVER_AUTH not in ISSUERS["clients"].usages
    assert SERVER_AUTH not in ISSUERS["agents"].usages


def test_each_issuer_makes_another_role() -> None:
    assert len({issuer.role for issuer in ISSUERS.values()}) == len(ISSUERS)
    assert len({issuer.noun for issuer in ISSUERS.values()}) == len(ISSUERS)


def test_authorities_sign_certificates_and_leaves_sign_messages(authority: Authority) -> None:
    assert ca_key_usage().key_cert_sign
    assert ca_key_usage().crl_sign
    assert not ca_key_usage().digital_signature
    assert leaf_key_usage().digital_signature
    assert not leaf_key_usage().key_cert_sign
