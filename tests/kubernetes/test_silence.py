"""Streams that say nothing for a long time live: no idle limit of server, agent or gateway may end them.

Real processes with every idle limit divided by 20, silent for three times the longest of them, all at the same time.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.conftest import MEMBER, view
from tests.kubernetes.views import TRANSPORTS
from tests.lab.controlplane import ControlPlane
from tests.lab.scaled import longest
from tests.lab.world import TowerWorld

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]
DIVISOR = 20.0


@pytest.fixture(scope="module")
def impatient(member: ControlPlane) -> Iterator[TowerWorld]:
    with (
        tempfile.TemporaryDirectory(prefix="tower-") as folder,
        TowerWorld(Path(folder), host="impatient", idle_limits_divided_by=DIVISOR) as tower,
    ):
        tower.join(MEMBER, member)
        yield tower


def test_silent_streams_live(member: ControlPlane, impatient: TowerWorld) -> None:
    caller = view(member, "tunnel", impatient.kubeconfig(MEMBER))
    member.kubectl("create", "namespace", "silent")
    member.create_pod("silent", namespace="silent")
    with contextlib.ExitStack() as stack:
        start = lambda *arguments, **more: stack.enter_context(caller.start(*arguments, **more))  # noqa: E731
        watch = start("get", "configmaps", "-n", "silent", "--watch", "-o", "name")
        logs = start("logs", "-n", "silent", "-f", "silent")
        shells = [start("exec", "-i", "-n", "silent", "silent", "--", "cat", env=env) for env in TRANSPORTS.values()]
        for shell in shells:
            shell.type(b"before\n")
            shell.until(b"before\n")
        member.write_log("silent", "before", namespace="silent")
        logs.until(b"before\n")
        tunnels = impatient.towerctl("get", "tunnels", "-o", "name").text

        time.sleep(3 * longest(DIVISOR))  # the silence itself is what is tested

        assert impatient.towerctl("get", "tunnels", "-o", "name").text == tunnels
        member.kubectl("create", "configmap", "after", "-n", "silent")
        watch.until(b"configmap/after\n")
        member.write_log("silent", "after", namespace="silent")
        logs.until(b"after\n")
        for shell in shells:
            shell.type(b"after\n")
            shell.until(b"after\n")
            shell.end_input()
            assert shell.wait().code == 0
