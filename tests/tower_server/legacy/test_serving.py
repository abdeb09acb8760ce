"""The certificate that callers of a Go agent's member see, and the credential that serves them."""

from __future__ import annotations

import ssl
from pathlib import Path
from time import time

import pytest

from certs.ca import Authority
from tests.lab.pki import ClusterCA
from tower_server.legacy.registration import Credential, Target
from tower_server.legacy.serving import Certificates, Shown

TARGET = Target("127.0.0.1", 6443)


def test_a_context_lasts_until_its_certificate_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    authority, now = Authority.create("hq", at=time()), time()
    names = ("edge-1.example.com",)
    certificates = Certificates(authority, "edge-1", lambda: names)
    first = certificates.context()
    assert first.verify_mode is ssl.CERT_OPTIONAL
    assert certificates.context() is first
    names = ("edge-1.example.com", "mc-edge-1.kubesphere-system.svc")
    other = certificates.context()
    assert other is not first
    assert certificates.context() is other
    monkeypatch.setattr("tower_server.legacy.serving.time.time", lambda: now + 5 * 86400)
    assert certificates.context() is not other


def test_a_credential_that_openssl_cannot_use_is_found_out(tmp_path: Path) -> None:
    ca = ClusterCA(tmp_path, "ca")
    pair = ca.client("a", "agent")
    chain, key = pair.certificate.read_bytes(), pair.key.read_bytes()
    Shown.of(TARGET, Credential(ca.pem.decode(), chain, key))
    Shown.of(TARGET, Credential(ca.pem.decode(), token=b"t"))
    Shown.of(TARGET, Credential(""))  # the system's roots
    with pytest.raises((ssl.SSLError, ValueError)):
        Shown.of(TARGET, Credential(ca.pem.decode(), chain, b"no key"))
