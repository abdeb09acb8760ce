from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from certs.published import published
from tests.lab.pki import ClusterCA
from tests.tower_server.legacy.test_registration import GO_TOWER_CA


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # theirs is 0
def test_go_towers_ca_is_known_by_its_key(tmp_path: Path) -> None:
    own = x509.load_pem_x509_certificates(ClusterCA(tmp_path, "own").pem)
    theirs = x509.load_pem_x509_certificates(GO_TOWER_CA.encode())
    assert published(own) is None
    assert "Go Tower" in str(published(theirs))
    assert "Go Tower" in str(published([*own, *theirs]))
