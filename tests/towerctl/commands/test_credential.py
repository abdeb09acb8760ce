"""`credential` through its options; what it keeps and when is told in tests/towerctl/test_credentials.py."""

from __future__ import annotations

import json
import sys

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from tests.towerctl.kit import Shell


def test_the_name_that_was_asked_for_is_in_the_certificate(live: Shell, cluster: str) -> None:
    printed = json.loads(live.ok("credential", cluster, "--as", "alice"))
    certificate = x509.load_pem_x509_certificate(printed["status"]["clientCertificateData"].encode())
    assert certificate.subject.rfc4514_string() == "CN=alice"


def test_a_name_that_no_certificate_may_carry_is_refused(live: Shell, cluster: str) -> None:
    live("credential", cluster, "--as", "system:masters").refused("system:masters")
    live("credential", cluster, "--as", "a\rb").refused("cannot be a caller's name", code=2)


def test_groups_are_in_the_certificate_and_kept_apart_from_other_groups(live: Shell, cluster: str) -> None:
    for groups in (["dev"], ["dev", "ops"], []):
        arguments = [part for group in groups for part in ("--group", group)]
        printed = json.loads(live.ok("credential", cluster, "--as", "bob", *arguments))
        certificate = x509.load_pem_x509_certificate(printed["status"]["clientCertificateData"].encode())
        assert [name.value for name in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)] == groups
    live("credential", cluster, "--group", "dev").refused("--group goes with --as", "add --as NAME", code=2)
    live("credential", cluster, "--as", "bob", "--group", "system:masters").refused("system:masters")


def test_a_person_who_asks_for_a_new_one_does_not_see_its_key(
    live: Shell, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = live.ok("credential", cluster)
    with monkeypatch.context() as terminal:
        terminal.setattr(sys.stdout, "isatty", lambda: True)
        ran = live("credential", cluster, "--refresh")
    assert (ran.code, ran.out) == (0, "")
    assert f"A new certificate for {cluster} is kept" in ran.err
    second = live.ok("credential", cluster)
    assert second != first
    assert live.ok("credential", cluster) == second
