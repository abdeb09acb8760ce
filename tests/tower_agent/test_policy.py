"""The owner's policy: read, followed, compared with RBAC."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.faults import TowerError
from gateway.policy import Policy
from tests.tower_agent.backend import Pki, Request, backend
from tests.tower_agent.test_member import api
from tower_agent.policy import PolicyFile, drift

FILE = """\
hosts:
  east:
    users: [tower:east:admin, jane]
    groups: [devs]
"""


def test_without_a_file_a_host_has_the_default() -> None:
    policies = PolicyFile(None)
    assert policies.policy("east") == Policy.default("east")
    assert policies.changed() is False


def test_a_host_that_is_not_named_may_act_as_nobody(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(FILE)
    policies = PolicyFile(file)
    assert policies.hosts == ("east",)
    assert policies.policy("east").users == {"tower:east:admin", "jane"}
    assert policies.policy("west") == Policy("west")


def test_changes_are_followed_and_mistakes_change_nothing(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(FILE)
    policies = PolicyFile(file)
    replace(file, FILE.replace("jane", "joan"))
    assert policies.changed() is True
    assert "joan" in policies.policy("east").users
    assert policies.changed() is False
    replace(file, FILE.replace("jane", "system:admin"))
    assert policies.changed() is False
    assert policies.problem is not None
    assert "system:admin" in policies.problem
    assert "the policy that was read before is in force" in policies.problem
    assert "joan" in policies.policy("east").users
    file.unlink()
    assert policies.changed() is False
    assert policies.problem is not None
    replace(file, FILE)
    assert policies.changed() is True
    assert policies.problem is None


def replace(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hosts: [east]", "`hosts` is not a mapping"),
        ("users: [a]", "unknown keys users"),
        ("hosts: {east: [a]}", "the rules of host 'east' are not a mapping"),
        ("hosts: {east: {user: [a]}}", "unknown keys user"),
        ("hosts: {east: {users: ['*']}}", "there are no patterns"),
    ],
)
def test_mistakes_at_start_are_named(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(TowerError) as caught:
        PolicyFile(file)
    assert caught.value.code == "TWR101"
    assert told in caught.value.message
    assert str(file) in caught.value.message


@pytest.mark.asyncio
async def test_drift_names_what_rbac_lacks(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def review(request: Request) -> tuple[int, object]:
        document = request.json()
        assert isinstance(document, dict)
        attributes = document["spec"]["resourceAttributes"]
        assert attributes["verb"] == "impersonate"
        asked.append((attributes["resource"], attributes["name"]))
        return 201, {"status": {"allowed": attributes["name"] != "devs"}}

    pki = Pki(tmp_path)
    policy = Policy.from_dict("east", {"users": ["jane"], "groups": ["devs", "ops"]})
    async with backend(review, pki.server) as served:
        member = api(tmp_path, served.port, pki)
        text = await drift(member, policy)
        assert text is not None
        assert text.endswith("group devs")
        assert asked == [("users", "jane"), ("groups", "devs"), ("groups", "ops")]
        served.respond = lambda _request: (201, {"status": {"allowed": True}})
        assert await drift(member, policy) is None


@pytest.mark.asyncio
async def test_drift_stays_one_sentence(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    policy = Policy.from_dict("east", {"users": [f"user-{number:02}" for number in range(12)]})
    async with backend(lambda _request: (201, {"status": {"allowed": False}}), pki.server) as served:
        text = await drift(api(tmp_path, served.port, pki), policy)
    assert text is not None
    assert text.endswith("user user-09 and 2 more")
