"""kubectl over a link of 1 Mbit/s that loses five packets of a hundred and falls silent now and then.

Real queues and real loss, in a network of the member's own. Both directions are full all the time. What is copied to
the member goes over SPDY: kubectl gives up a WebSocket whose ping is unanswered for 61 s, and that ping waits behind
the 3 MiB that the loopback's sockets take at once, which this link carries in 45 s at its best.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.conftest import view
from tests.kubernetes.flows import flowing
from tests.kubernetes.views import SPDY
from tests.lab.controlplane import ControlPlane, Done
from tests.lab.network import MemberNetwork, lacking
from tests.lab.processes import wait_until
from tests.lab.world import TowerWorld
from tests.loopback.callers import tunnels

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(500)]
NAME = "faraway"
BYTES = 4 * 1024 * 1024
SILENCES = 2
UNDER_WAY = 64 * 1024
TUNED = {"liveness": {"ping": "1500ms", "dead_after": "5s"}}
COPY_DEADLINE = 300.0
BACK = 60.0


@pytest.fixture(scope="module")
def apart() -> Iterator[ControlPlane]:
    if reason := lacking():
        pytest.skip(f"no network namespaces here: {reason}")
    with (
        tempfile.TemporaryDirectory(prefix="twr-m-") as folder,
        MemberNetwork() as net,
        ControlPlane(Path(folder), network=net) as plane,
    ):
        yield plane


@pytest.fixture(scope="module")
def tower(apart: ControlPlane) -> Iterator[TowerWorld]:
    assert apart.network is not None
    with (
        tempfile.TemporaryDirectory(prefix="twr-") as folder,
        TowerWorld(Path(folder), host=NAME, address=apart.network.host, settings=TUNED) as world,
    ):
        world.join(NAME, apart, settings=TUNED)
        yield world


def carried(tower: TowerWorld) -> dict[str, int]:
    """How many bytes each stream has carried in the direction in which it was more."""
    streams = tower.call("GET", f"/v1/streams?cluster={NAME}")[1]["items"]
    return {stream["name"]: max(stream["bytes_in"], stream["bytes_out"]) for stream in streams}


def test_a_slow_and_lossy_link_loses_nothing(apart: ControlPlane, tower: TowerWorld) -> None:
    net, caller, log = apart.network, view(apart, "tunnel", tower.kubeconfig(NAME)), tower.members[NAME].agent.log
    assert net is not None
    data, done = os.urandom(BYTES), dict[str, Done]()
    text = [f"{number} {os.urandom(500).hex()}" for number in range(BYTES // 1000)]

    def copy(name: str, *command: str, stdin: bytes = b"") -> threading.Thread:
        def run() -> None:
            done[name] = caller.kubectl(*command, stdin=stdin, env=SPDY, deadline=COPY_DEADLINE)

        thread = threading.Thread(target=run, name=name)
        thread.start()
        return thread

    before = tunnels(tower, NAME)
    with flowing(apart, caller, None, "slow", every=0.5) as flows:
        apart.create_pod("bulk", namespace="slow")
        apart.write_log("bulk", *text, namespace="slow")
        with net.poor(rate="1mbit", loss=5):
            flowing_by = carried(tower).keys()  # what is counted there comes to as much in half a minute
            began = time.monotonic()

            def busy() -> int:
                """How many streams of the copies have carried more than a handshake and a request."""
                return sum(now > UNDER_WAY for name, now in carried(tower).items() if name not in flowing_by)

            copies = [
                copy("to", "exec", "-n", "slow", "-i", "pod", "--", "sha256sum", stdin=data),
                copy("from", "logs", "-n", "slow", "bulk"),
            ]
            # Who comes while the link is silent is told so after two seconds: the copies have to be under way.
            wait_until(lambda: busy() == len(copies), "both copies under way", BACK)
            for number in range(SILENCES):
                flows.more(5)
                silences = log.read_text().count("nothing heard")
                with net.vanishing():
                    wait_until(lambda n=silences: log.read_text().count("nothing heard") > n, "silence noticed", BACK)
                wait_until(
                    lambda n=number: log.read_text().count('"tunnel-resumed"') > n, "the tunnel taken up again", BACK
                )
            for thread in copies:
                thread.join(COPY_DEADLINE + BACK)
            took = time.monotonic() - began
        lines = flows.finish()
    assert done["to"].text.startswith(hashlib.sha256(data).hexdigest()), done["to"]
    fetched = done["from"]
    assert fetched.stdout.decode().splitlines() == text, (fetched.code, len(fetched.stdout), fetched.stderr)
    assert tunnels(tower, NAME) == before, "it is one and the same tunnel"
    resumes = log.read_text().count('"tunnel-resumed"')
    print(f"{BYTES // 1024**2} MiB each way at once in {took:.0f} s, {resumes} resumes; lines {lines}")
