from __future__ import annotations

import pytest

from tests.gateway.kit import Pki
from tests.lab.loops import pytest_asyncio_loop_factories as pytest_asyncio_loop_factories


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("gateway-pki"))
