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


@pytest.mark.parametrize("kind", ["agent", "token", "tunnel", "stream"])
def test_whatever_is_missing_is_answered_with_the_command_that_helps(kind: str) -> None:
    assert f"towerctl get {kind}s" in missing(kind, "x", [f"z{n}" for n in range(9)], plural=f"{kind}s").mend
    assert f"towerctl get {kind}s" in missing(kind, "z1", ["z2"], plural=f"{kind}s").mend
    assert "there is none yet; " in missing(kind, "x", [], plural=f"{kind}s").mend


def test_an_agent_that_is_missing_says_how_to_find_or_join_one(live: Shell, cluster: str) -> None:
    ran = live("describe", "agent", "nobody", "--cluster", cluster)
    ran.refused(f"there is no agent 'nobody' in cluster {cluster}", "`towerctl get agents` lists those of all clusters")
    live("describe", "agent", "nobody", "--cluster", "nowhere").refused("there is no cluster 'nowhere'")
    assert "`towerctl create token CLUSTER`" in missing("agent", "x", [], plural="agents").mend


def test_a_name_that_two_clusters_share_asks_which_one(shell: Shell) -> None:
    body = '{"items": [{"name": "a", "cluster": "edge-1"}, {"name": "a", "cluster": "edge-2"}]}'
    with peer(shell.socket, http("200 OK", body)):
        shell("describe", "agent", "a").refused("2 agents named 'a'", "edge-1, edge-2", "--cluster", code=2)
