"""`tower-agent leave` against a real server: the identity is revoked there, then gone here, in this order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.lab.controlplane import Done, run
from tests.lab.world import BIN, TowerWorld
from tests.loopback.member import BackendMember

pytestmark = pytest.mark.slow


@pytest.fixture
def world(own_world: Callable[..., TowerWorld]) -> TowerWorld:
    return own_world()


def agent(world: TowerWorld, config: Path, *arguments: str, stdin: bytes = b"") -> Done:
    return run([str(BIN / "tower-agent"), "--config", str(config), *arguments], world.environment(), stdin)


def joined(world: TowerWorld, member: BackendMember, *names: str) -> Path:
    """The configuration of an agent that has joined each of `names`, of which a state directory holds one a host."""
    config = world.folder / "leaver.yaml"
    state = world.folder / "leaver"
    config.write_text(yaml.safe_dump({"kubeconfig": str(member.by_token), "state_dir": str(state)}))
    for name in names:
        _, added = world.call("POST", "/v1/clusters", {"name": name})
        done = agent(world, config, "join", stdin=added["join"]["token"].encode())
        assert done.code == 0, done.stderr
    return config


def revoked(world: TowerWorld) -> list[bool]:
    return [item["revoked"] is not None for item in world.call("GET", "/v1/agents")[1]["items"]]


def test_it_is_revoked_at_the_host_and_gone_from_here(world: TowerWorld, member: BackendMember) -> None:
    config = joined(world, member, "edge")
    done = agent(world, config, "leave")
    assert done.code == 0, done.stderr
    assert b"left host lab: it has revoked agent edge/" in done.stderr
    assert revoked(world) == [True]
    assert not list((world.folder / "leaver").glob("**/identity.json"))
    again = agent(world, config, "leave", "lab")
    assert again.code != 0
    assert b"TWR225" in again.stderr
    assert b"'lab'" in again.stderr


def test_a_tunnel_that_stands_is_closed_and_says_why(world: TowerWorld, member: BackendMember) -> None:
    world.join("edge", member, credential=member.by_token)
    running = world.members["edge"]
    done = agent(world, running.config, "leave")
    assert done.code == 0, done.stderr
    world.until_state("edge", "AuthFailed")
    assert world.cluster("edge")["code"] == "TWR209"


def test_a_host_that_is_gone_is_left_only_on_request(world: TowerWorld, member: BackendMember) -> None:
    config = joined(world, member, "edge")
    assert world.stop_server() == 0
    refused = agent(world, config, "leave")
    assert refused.code != 0
    assert b"TWR211" in refused.stderr
    assert b"--forget" in refused.stderr
    assert list((world.folder / "leaver").glob("**/identity.json"))  # nothing is lost by trying
    done = agent(world, config, "leave", "--forget")
    assert done.code == 0, done.stderr
    assert b"towerctl revoke agent edge/" in done.stderr
    assert not list((world.folder / "leaver").glob("**/identity.json"))


@pytest.mark.parametrize(
    ("damaged", "there"), [("revocations", b"towerctl revoke agent edge/"), ("identity.json", b"towerctl get agents")]
)
def test_a_host_of_which_something_is_damaged_here_can_be_forgotten(
    world: TowerWorld, member: BackendMember, damaged: str, there: bytes
) -> None:
    config = joined(world, member, "edge")
    (file,) = (world.folder / "leaver").glob(f"**/{damaged}")
    file.write_bytes(b"{}")
    done = agent(world, config, "leave", "--forget")
    assert done.code == 0, done.stderr
    assert there in done.stderr
    assert not list((world.folder / "leaver").glob("**/identity.json"))


def test_a_cluster_that_was_deleted_is_left_all_the_same(world: TowerWorld, member: BackendMember) -> None:
    config = joined(world, member, "edge")
    assert world.call("DELETE", "/v1/clusters/edge")[0] == 200
    done = agent(world, config, "leave")
    assert done.code == 0, done.stderr


@pytest.mark.parametrize("body", [b"", b"{}", b'{"chain": ["AAAA"], "proof": "AAAA"}'])
def test_who_proves_nothing_changes_nothing(world: TowerWorld, member: BackendMember, body: bytes) -> None:
    joined(world, member, "edge")
    asked = ["curl", "-sk", "--max-time", "10", "--data-binary", "@-", "-w", "\n%{http_code}"]
    done = run([*asked, f"https://127.0.0.1:{world.tunnel_port}/v1/leave"], world.environment(), body)
    answer, _, status = done.text.rpartition("\n")
    assert status == "400"
    assert '"kind":"Error"' in answer
    assert '"mend":"' in answer
    assert revoked(world) == [False]
