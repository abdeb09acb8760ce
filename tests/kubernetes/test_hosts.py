"""One member that belongs to two hosts: what they made in it lies side by side, and one that dies is nobody else's."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path

import pytest

from tests.kubernetes.conftest import MEMBER, view
from tests.lab.controlplane import ControlPlane
from tests.lab.world import TowerWorld
from tests.loopback.callers import tunnels

pytestmark = pytest.mark.cluster
ENDED = 20.0


def test_a_host_that_dies_takes_nothing_of_another_with_it(member: ControlPlane, world: TowerWorld) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="tower-") as folder,
        TowerWorld(Path(folder), host="doomed") as doomed,
    ):
        agent = doomed.join(MEMBER, member).agent
        lasting = view(member, "lasting", world.kubeconfig(MEMBER))
        passing = view(member, "passing", doomed.kubeconfig(MEMBER))
        same = ("get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")
        assert lasting.kubectl(*same).text == passing.kubectl(*same).text != ""
        before = tunnels(world, MEMBER)
        with lasting.start("get", "configmaps", "-n", "shared", "--watch", "-o", "name") as watch:
            watch.until_line(b"configmap/two")
            for each in (doomed.server, agent):
                each.send(signal.SIGKILL)
                each.wait(ENDED)
            assert passing.kubectl(*same).code != 0, "it is dead"
            member.kubectl("create", "configmap", "later", "-n", "shared")
            try:
                watch.until_line(b"configmap/later")
                assert lasting.kubectl("get", "configmap", "later", "-n", "shared", "-o", "name").code == 0
            finally:
                member.kubectl("delete", "configmap", "later", "-n", "shared")
        assert tunnels(world, MEMBER) == before, "its tunnel is the same one"
