"""A second agent process of a joined cluster: it shares the identity of the first, as replicas of a Deployment do."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests.lab.processes import ADOPTED, Child, free_ports
from tests.lab.world import TowerWorld

STOP_DEADLINE = 30.0


class Replica:
    """Started anew by `restart`; ended by `stop` (as a rolling update does) or `kill`."""

    def __init__(self, world: TowerWorld, name: str, config: Path, child: Child | None = None) -> None:
        self._world, self._name, self._config = world, name, config
        self.child = child or self._start()

    def _start(self) -> Child:
        plane = self._world.members[self._name.removesuffix("-b")].plane
        child = self._world.start_agent(self._name, plane, self._config)
        ADOPTED.add(child.pid)
        return child

    def stop(self) -> int:
        """Its exit code, after a SIGTERM and whatever it still had to do."""
        self.child.send(signal.SIGTERM)
        return self.child.wait(STOP_DEADLINE)

    def kill(self) -> None:
        self.child.send(signal.SIGKILL)
        self.child.wait(STOP_DEADLINE)

    def start(self) -> None:
        self.child = self._start()


@contextlib.contextmanager
def second_replica(world: TowerWorld, name: str) -> Iterator[Replica]:
    """One beside the agent of the cluster."""
    member = world.members[name]
    (health,) = free_ports(1)
    settings = yaml.safe_load(member.config.read_text()) | {"health_address": f"127.0.0.1:{health}"}
    config = member.folder / "replica.yaml"
    config.touch(0o600)
    config.write_text(yaml.safe_dump(settings))
    made = Replica(world, f"{name}-b", config)
    try:
        yield made
    finally:
        made.child.stop()
