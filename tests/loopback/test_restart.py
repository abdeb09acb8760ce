"""The single server is restarted, or killed, while its service manager holds the ports: nobody is refused."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from tests.kubernetes.rawhttp import Answer, Connection
from tests.lab.processes import wait_until
from tests.lab.world import TowerWorld
from tests.loopback.callers import Caller, logs
from tests.loopback.load import loading
from tests.loopback.managed import Managed, heard
from tests.loopback.member import BackendMember

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
NAME = "edge"
BACK = 60.0
BACK_WITHIN = 2.0  # seconds from the new listener to the agent's tunnel
LASTED = 5.5  # seconds after which an agent takes a tunnel for a success, so that nothing adds to its next wait


@dataclass
class Place:
    world: TowerWorld
    caller: Caller
    managed: Managed
    listening: socket.socket


@pytest.fixture
def place(own_world: Callable[..., TowerWorld], member: BackendMember, tmp_path: Path) -> Iterator[Place]:
    world = own_world()
    world.join(NAME, member, credential=member.by_token)
    caller = Caller(world.kubeconfig(NAME))
    assert world.stop_server() == 0
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(BACK)
        held = {
            f"port-{caller.address[1]}": stack.enter_context(socket.create_server(caller.address)),
            "tunnel": stack.enter_context(socket.create_server(("127.0.0.1", world.tunnel_port))),
        }
        yield Place(world, caller, Managed(world, {"NOTIFY_SOCKET": str(tmp_path / "notify")}, held), listening)


def read_all(connection: Connection) -> None:
    while connection.line():
        pass


def connected(world: TowerWorld, for_seconds: float = 0.0) -> bool:
    found = world.call("GET", f"/v1/tunnels?cluster={NAME}")[1]["items"]
    return any(time.time() - datetime.fromisoformat(item["opened"]).timestamp() >= for_seconds for item in found)


def test_a_restart_under_load_refuses_nobody_loses_no_request_and_has_its_agents_back(place: Place) -> None:
    with contextlib.ExitStack() as stack:
        with place.managed.running():
            heard(place.listening, "READY=1")
            wait_until(lambda: connected(place.world, LASTED), "the agent", BACK)
            load = stack.enter_context(loading(place.caller))
        with place.managed.running():
            heard(place.listening, "READY=1")
            ready = time.monotonic()
            wait_until(lambda: connected(place.world), "the agent, back again", BACK)
            assert time.monotonic() - ready < BACK_WITHIN
            load.more()
            load.stop()
    load.check()
    assert load.watches == 2


def test_what_a_killed_server_held_ends_at_once_with_a_reason_and_who_comes_next_is_served(place: Place) -> None:
    answers: list[Answer] = []
    asking = threading.Thread(target=lambda: answers.append(place.caller.ask("/meanwhile")))
    agent = place.world.members[NAME].agent
    with logs(agent.log, "tunnel-down", "TWR"):
        with place.managed.running() as process:
            heard(place.listening, "READY=1")
            wait_until(lambda: connected(place.world, LASTED), "the agent", BACK)
            with place.caller.connect() as running:
                running.send(running.request("GET", "/watch"))
                assert running.line().startswith(b"HTTP/1.1 200")
                process.kill()
                killed = time.monotonic()
                with pytest.raises(OSError, match=r"(?i)eof|reset"):  # never an end that looks complete
                    read_all(running)
                assert time.monotonic() - killed < 2.0
            process.wait()
            asking.start()
        with place.managed.running():
            heard(place.listening, "READY=1")
            ready = time.monotonic()
            wait_until(lambda: connected(place.world), "the agent, back again", BACK)
            assert time.monotonic() - ready < BACK_WITHIN
            asking.join(BACK)
            assert [answer.status for answer in answers] == [200]
