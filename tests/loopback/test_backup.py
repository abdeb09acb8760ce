"""`tower-server backup` and `restore` on a whole tower: who joined and who calls need not hear of it."""

from __future__ import annotations

import shutil
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.lab.world import TowerWorld
from tests.loopback.callers import Caller, watching
from tests.loopback.member import BackendMember

pytestmark = pytest.mark.slow
NAME = "edge"
BACK = 60.0


def test_a_copy_of_a_running_server_brings_it_back_after_its_disk_was_lost(
    own_world: Callable[..., TowerWorld], member: BackendMember, tmp_path: Path
) -> None:
    world, copy = own_world(), tmp_path / "copy"
    world.join(NAME, member, credential=member.by_token)
    caller, before = Caller(world.kubeconfig(NAME)), world.cluster(NAME)
    with watching(caller) as goes_on:
        world.command("tower-server", "backup", "--config", str(world.config), str(copy))
        goes_on()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    world.server.send(signal.SIGKILL)
    world.stop_server()
    shutil.rmtree(yaml.safe_load(world.config.read_text())["state_dir"])
    world.command("tower-server", "restore", "--config", str(world.config), str(copy))
    world.start()
    world.until_state(NAME, "Connected", deadline=BACK)
    after = world.cluster(NAME)
    assert (after["ports"], after["agents"]) == (before["ports"], before["agents"])
    assert caller.ask("/restored").status == 200  # by the same port, certificate and CA
