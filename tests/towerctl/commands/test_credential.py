"""`credential` through its options; what it keeps and when is told in tests/towerctl/test_credentials.py."""

from __future__ import annotations

import json

from cryptography import x509

from tests.towerctl.kit import Shell


def test_the_name_that_was_asked_for_is_in_the_certificate(live: Shell, cluster: str) -> None:
    printed = json.loads(live.ok("credential", cluster, "--as", "alice"))
    certificate = x509.load_pem_x509_certificate(printed["status"]["clientCertificateData"].encode())
    assert certificate.subject.rfc4514_string() == "CN=alice"


def test_a_name_that_no_certificate_may_carry_is_refused(live: Shell, cluster: str) -> None:
    live("credential", cluster, "--as", "system:masters").refused("system:masters")
    live("credential", cluster, "--as", "a\rb").refused("cannot be a caller's name", code=2)
