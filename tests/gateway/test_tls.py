"""How an apiserver is named, and that its certificate is always checked."""

from __future__ import annotations

import ssl

from gateway.tls import Apiserver, upstream_context
from tests.gateway.kit import Pki


def test_authority() -> None:
    assert Apiserver("10.0.0.1", 6443).authority == b"10.0.0.1:6443"
    assert str(Apiserver("2001:db8::1", 443)) == "[2001:db8::1]:443"


def test_the_given_ca_is_the_only_one(pki: Pki) -> None:
    context = upstream_context(Apiserver("a", 1, ca_pem=pki.cluster.pem.decode()))
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert len(context.get_ca_certs()) == 1


def test_without_a_ca_the_systems_roots_count() -> None:
    context = upstream_context(Apiserver("a", 1))
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
