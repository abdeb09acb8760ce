from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography import x509

from certs.published import published
from tests.certs.test_keys import ELLIPTIC, UNREAD
from tests.lab.pki import ClusterCA
from tests.tower_server.legacy.test_registration import GO_TOWER_CA


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # theirs is 0
def test_go_towers_ca_is_known_by_its_key(tmp_path: Path) -> None:
    own = x509.load_pem_x509_certificates(ClusterCA(tmp_path, "own").pem)
    theirs = x509.load_pem_x509_certificates(GO_TOWER_CA.encode())
    assert published(own) is None
    assert "Go Tower" in str(published(theirs))
    assert "Go Tower" in str(published([*own, *theirs]))


def test_a_key_that_cannot_be_theirs_is_not_even_read(tmp_path: Path) -> None:
    own = ClusterCA(tmp_path, "own").pem
    odd = ssl.PEM_cert_to_DER_cert(own.decode()).replace(ELLIPTIC, UNREAD)
    assert published([x509.load_der_x509_certificate(odd)]) is None
