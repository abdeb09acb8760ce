"""The tower CA is rotated under running streams; what was not brought along is refused at its end and not before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lab.processes import wait_until
from tests.lab.world import TowerWorld
from tests.loopback.callers import Caller, watching
from tests.loopback.member import BackendMember

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
PATIENCE = 45.0  # agents spread their renewals over ten seconds


def authority(world: TowerWorld) -> dict[str, Any]:
    status, found = world.call("GET", "/v1/authority")
    assert status == 200, found
    return found


def identity(world: TowerWorld, name: str) -> dict[str, Any]:
    (file,) = world.members[name].folder.glob("state/**/identity.json")
    read: dict[str, Any] = json.loads(file.read_text())
    return read


def rotated(world: TowerWorld, step: str, *more: str) -> None:
    world.towerctl("rotate", "authority", step, *more)


def kubeconfig(world: TowerWorld) -> Path:
    path = world.kubeconfig("edge")
    kept = path.with_name(f"{authority(world)['number']}.kubeconfig")
    kept.touch(0o600)
    kept.write_bytes(path.read_bytes())
    return kept


def everybody_is_along(world: TowerWorld) -> None:
    wait_until(lambda: authority(world)["waiting"] == [], "no agent lags behind", PATIENCE)


def test_three_steps_break_no_stream(own_world: Callable[..., TowerWorld], member: BackendMember) -> None:
    world = own_world()
    world.join("edge", member, credential=member.by_token)
    tunnels = world.towerctl("get", "tunnels", "-o", "name").text
    before = Caller(kubeconfig(world))
    with watching(before) as goes_on:
        rotated(world, "start")
        everybody_is_along(world)
        both = Caller(kubeconfig(world))
        goes_on()

        rotated(world, "switch")
        everybody_is_along(world)
        assert both.ask("/version").status == 200  # it trusts the new root, and its old certificate is still good
        after = Caller(kubeconfig(world))
        assert after.ask("/version").status == 200
        goes_on()
        assert world.towerctl("get", "tunnels", "-o", "name").text == tunnels
        assert world.cluster("edge")["ready"] == "True"
    rotated(world, "finish")
    everybody_is_along(world)
    assert authority(world)["phase"] == "steady"
    assert after.ask("/version").status == 200
    wait_until(lambda: identity(world, "edge")["trust_number"] == 4, "the agent has dropped the old root", PATIENCE)
    assert identity(world, "edge")["trust"].count("BEGIN CERTIFICATE") == 5
    assert world.towerctl("get", "tunnels", "-o", "name").text == tunnels
    world.restart_agent("edge")
    world.until_state("edge", "Connected")
    assert after.ask("/version").status == 200
    with pytest.raises((OSError, AssertionError)):  # a certificate of an issuer that nobody knows ends in a TLS alert
        both.ask("/version")


def test_a_step_that_would_lock_an_agent_out_is_refused_and_names_it(
    own_world: Callable[..., TowerWorld], member: BackendMember
) -> None:
    world = own_world()
    world.join("edge", member, credential=member.by_token)
    agent = world.cluster("edge")["agents"][0]
    world.members["edge"].agent.stop()
    rotated(world, "start")
    refused = world.towerctl("rotate", "authority", "switch", check=False)
    assert refused.code == 1
    said = refused.stderr.decode()
    assert f"edge/{agent}" in said
    assert "TWR510" in said
    assert "--force" in said
    shown = world.towerctl("describe", "authority").text
    assert "announced" in shown
    assert f"Waiting: edge/{agent}" in shown
    world.restart_agent("edge")  # it hears what it has missed
    everybody_is_along(world)
    rotated(world, "switch")
    wrong = world.towerctl("rotate", "authority", "start", check=False)
    assert wrong.code == 1
    assert "is at switched" in wrong.stderr.decode()


def test_a_server_that_restarts_between_two_steps_goes_on_from_there(
    own_world: Callable[..., TowerWorld], member: BackendMember
) -> None:
    world = own_world()
    world.join("edge", member, credential=member.by_token)
    rotated(world, "start")
    everybody_is_along(world)
    rotated(world, "switch")
    state = {key: value for key, value in authority(world).items() if key != "waiting"}
    world.stop_server()
    world.start()
    world.until_state("edge", "Connected")
    assert {key: value for key, value in authority(world).items() if key != "waiting"} == state
    everybody_is_along(world)
    added = world.call("POST", "/v1/clusters", {"name": "late"})
    assert added[0] == 201
