"""What a service manager and its user see: readiness, inherited ports, an end in time, clear refusals.

The mistakes in configuration that a process names before it does anything are held by the tests of both mains.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.lab.controlplane import run
from tests.lab.processes import free_ports
from tests.lab.world import BIN, TowerWorld
from tests.loopback.callers import Caller, metrics, ticks_until_end
from tests.loopback.managed import Managed, heard
from tests.loopback.member import BackendMember

pytestmark = pytest.mark.slow


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """Where a service manager hears its services, and what it puts into their environment."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20.0)
        # The first beat comes at once, and more of them so rarely that they do not fill the socket, which holds eleven
        # datagrams: the word of the end would find no room.
        yield listening, {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "6000000"}


def test_a_restart_under_a_service_manager_refuses_no_caller(
    own_world: Callable[..., TowerWorld], manager: tuple[socket.socket, dict[str, str]]
) -> None:
    world, (listening, environment) = own_world(), manager
    world.towerctl("add", "cluster", "edge")
    caller = Caller(world.kubeconfig("edge"))
    assert world.stop_server() == 0
    with contextlib.ExitStack() as stack:
        held = {
            f"port-{caller.address[1]}": stack.enter_context(socket.create_server(caller.address)),
            "tunnel": stack.enter_context(socket.create_server(("127.0.0.1", world.tunnel_port))),
        }
        managed = Managed(world, environment, held)
        with managed.running():
            heard(listening, "READY=1")
            heard(listening, "WATCHDOG=1")
            assert caller.ask("/first").status == 503
        heard(listening, "STOPPING=1")
        with caller.plain() as early, managed.running():  # it came while no server ran
            heard(listening, "READY=1")
            early.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert b"HTTPS" in early.recv(4096)
            assert caller.ask("/second").status == 503
            assert metrics(world)['tower_ports{kind="caller",state="unavailable"}'] == 0


def test_both_ends_stop_in_time_under_streams_that_never_end(
    own_world: Callable[..., TowerWorld], member: BackendMember
) -> None:
    world = own_world(settings={"drain": "2s", "callers": {"address": "127.0.0.1"}})
    world.join("edge", member, credential=member.by_token, settings={"drain": "2s"})
    caller = Caller(world.kubeconfig("edge"))
    for child in (world.members["edge"].agent, world.server):
        with caller.connect() as running:
            running.send(running.request("GET", "/watch"))
            assert running.line().startswith(b"HTTP/1.1 200")
            began = time.monotonic()
            child.send(signal.SIGTERM)
            assert child.wait(10.0) == 0
            ticks_until_end(running)
            assert time.monotonic() - began < 6.0
        if child is not world.server:
            world.restart_agent("edge")
            world.until_state("edge", "Connected")


def test_an_identity_that_others_can_read_is_not_used(
    own_world: Callable[..., TowerWorld], member: BackendMember
) -> None:
    world = own_world()
    world.join("edge", member, credential=member.by_token)
    joined = world.members["edge"]
    joined.agent.stop()
    (identity,) = joined.folder.glob("state/**/identity.json")
    identity.chmod(0o644)
    argv = [str(BIN / "tower-agent"), "--config", str(joined.config), "run"]
    done = run(argv, world.environment())
    assert done.code != 0
    said = done.stderr.decode()
    assert "TWR" in said
    assert str(identity) in said
    assert "PRIVATE KEY" not in said
    identity.chmod(0o600)
    identity.write_text(json.dumps({"key": "-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----\n"}))
    damaged = run(argv, world.environment())
    assert damaged.code != 0
    assert str(identity) in damaged.stderr.decode()
    assert "nonsense" not in damaged.stderr.decode()


@pytest.mark.parametrize("what", ["health", "tunnel", "admin"])
def test_a_place_that_is_taken_is_named_with_its_mend(own_world: Callable[..., TowerWorld], what: str) -> None:
    world = own_world()
    other = yaml.safe_load(world.config.read_text()) | {"state_dir": str(world.folder / "other")}
    tunnel, health = free_ports(2)
    unlike = {
        "listen": f"127.0.0.1:{tunnel}",
        "health_address": f"127.0.0.1:{health}",
        "admin_socket": str(world.folder / "other.sock"),
    }
    del unlike[{"health": "health_address", "tunnel": "listen", "admin": "admin_socket"}[what]]
    file = world.folder / "other.yaml"
    file.write_text(yaml.safe_dump(other | unlike))
    environment = {key: value for key, value in world.environment().items() if key != "TOWER_ADMIN_SOCKET"}
    done = run([str(BIN / "tower-server"), "run", "--config", str(file)], environment)
    said = done.stderr.decode()
    assert done.code != 0
    last = [line for line in said.splitlines() if line.startswith("tower-server: TWR")]
    assert len(last) == 1, said
    taken = {"health": str(world.health_port), "tunnel": str(world.tunnel_port), "admin": str(world.socket)}[what]
    assert taken in last[0]
    assert said.splitlines()[-1].startswith("  ")
    assert world.call("GET", "/v1/info")[0] == 200  # the first one is not harmed
