from __future__ import annotations

import json

import pytest

from tests.towerctl.kit import Shell, http, peer


@pytest.mark.parametrize(
    "answer", [{}, {"chain": "x"}, {"chain": ["x"], "expires": "2999-01-01T00:00:00Z"}, {"chain": "x", "expires": 5}]
)
def test_an_answer_without_a_certificate_is_not_passed_on(shell: Shell, answer: dict[str, object]) -> None:
    with peer(shell.socket, http("200 OK", json.dumps(answer))):
        shell("credential", "edge-1").refused("without chain or end", "TWR611")
