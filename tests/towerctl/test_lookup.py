from __future__ import annotations

import pytest

from tests.towerctl.kit import Shell, http, peer
from towerctl.lookup import missing


@pytest.mark.parametrize(
    ("names", "mend"),
    [
        (["edge-1", "edge-2", "zebra"], "did you mean edge-1 or edge-2?"),
        (["zebra", "apple"], "there are: apple, zebra"),
        ([f"z{n}" for n in range(9)], ", ..."),
        ([], "towerctl add cluster edge"),
    ],
)
def test_a_missing_cluster_is_answered_with_what_there_is(names: list[str], mend: str) -> None:
    assert mend in missing("cluster", "edge", names, plural="clusters").mend


def test_a_name_that_two_clusters_share_asks_which_one(shell: Shell) -> None:
    body = '{"items": [{"name": "a", "cluster": "edge-1"}, {"name": "a", "cluster": "edge-2"}]}'
    with peer(shell.socket, http("200 OK", body)):
        shell("describe", "agent", "a").refused("2 agents named 'a'", "edge-1, edge-2", "--cluster", code=2)
