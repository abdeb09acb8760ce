from __future__ import annotations

import pytest

from tests.gateway.kit import Pki


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("gateway-pki"))
