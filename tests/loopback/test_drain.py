"""Processes that are told to stop, under load: what runs ends well, what comes goes elsewhere or is told why."""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kubernetes.rawhttp import Answer
from tests.lab.processes import free_ports, wait_until
from tests.lab.world import TowerWorld
from tests.loopback.callers import Caller, logs
from tests.loopback.load import loading
from tests.loopback.member import BackendMember
from tests.loopback.relay import network
from tests.loopback.replicas import Replica, second_replica

pytestmark = pytest.mark.slow
NAME = "edge"
BACK = 60.0


@pytest.fixture(scope="module")
def tower(member: BackendMember) -> Iterator[TowerWorld]:
    with tempfile.TemporaryDirectory(prefix="twr-") as folder, TowerWorld(Path(folder)) as world:
        world.join(NAME, member, credential=member.by_token)
        yield world


def open_tunnels(tower: TowerWorld) -> int:
    items = tower.call("GET", f"/v1/tunnels?cluster={NAME}")[1]["items"]
    return [item["state"] for item in items].count("Open")


def first_replica(tower: TowerWorld) -> Replica:
    member = tower.members[NAME]
    return Replica(tower, NAME, member.config, member.agent)


@pytest.mark.timeout(240)
def test_a_rolling_restart_of_two_replicas_loses_no_request_and_no_event(tower: TowerWorld) -> None:
    caller = Caller(tower.kubeconfig(NAME))
    first = first_replica(tower)
    with second_replica(tower, NAME) as second:
        wait_until(lambda: open_tunnels(tower) == 2, "two replicas", BACK)
        with loading(caller) as load:
            for replica in (first, second):
                assert replica.stop() == 0
                load.more()
                replica.start()
                wait_until(lambda: open_tunnels(tower) == 2, "two replicas again", BACK)
                load.more()
        load.check()
        assert load.watches >= 2, "a watch was moved"
        assert tower.cluster(NAME)["ready"] == "True"
    first.child.stop()
    tower.restart_agent(NAME)
    tower.until_state(NAME, "Connected")


def test_an_agent_that_is_told_to_stop_answers_what_it_was_asked(tower: TowerWorld) -> None:
    caller = Caller(tower.kubeconfig(NAME))
    answers: list[Answer] = []
    asking = threading.Thread(target=lambda: answers.append(caller.ask("/late")))
    asking.start()
    wait_until(lambda: callers_streams(tower) == 1, "the request under way", BACK)
    agent = tower.members[NAME].agent
    with logs(tower.server.log, "tunnel-closed", "SHUTDOWN", "the agent is stopping"):
        agent.send(signal.SIGTERM)
        asking.join(BACK)
        assert [answer.status for answer in answers] == [200]
        assert agent.wait(BACK) == 0
    tower.restart_agent(NAME)
    tower.until_state(NAME, "Connected")


def callers_streams(tower: TowerWorld) -> int:
    items = tower.call("GET", f"/v1/streams?cluster={NAME}")[1]["items"]
    return sum(bool(item["connection_id"]) for item in items)


def test_a_server_that_is_told_to_stop_ends_watches_cleanly_and_tells_callers_that_it_goes(
    own_world: Callable[..., TowerWorld], member: BackendMember
) -> None:
    world = own_world(settings={"drain": "20s", "callers": {"address": "127.0.0.1"}})
    world.join(NAME, member, credential=member.by_token)
    caller = Caller(world.kubeconfig(NAME))
    with contextlib.ExitStack() as stack:
        load = stack.enter_context(loading(caller, "watch", "ask_on"))
        hanging = stack.enter_context(caller.connect())
        hanging.send(hanging.request("GET", "/hang"))
        wait_until(lambda: callers_streams(world) == 3, "the streams", BACK)
        began, server = time.monotonic(), world.server
        with logs(server.log, '"?draining'), logs(world.members[NAME].agent.log, "tunnel-drains", "the server stops"):
            server.send(signal.SIGTERM)
        answer = caller.ask("/new")
        assert answer.status == 503
        assert "TWR113" in json.loads(answer.body)["message"]
        assert dict(answer.headers)["retry-after"] == "1"
        wait_until(lambda: not load._threads or bool(load.failures), "the callers are told", BACK)
        load.stop()
        assert load.watches == 1
        assert all("503" in failure for failure in load.failures), load.failures
        assert load.events == list(range(load.events[0], load.events[0] + len(load.events)))
        assert server.returncode is None, "what hangs is waited for"
        hanging.__exit__()
        assert server.wait(BACK) == 0
        assert time.monotonic() - began < 15.0, "and nothing else is"


def test_a_server_that_stops_still_takes_up_its_own_tunnels_again(
    own_world: Callable[..., TowerWorld], member: BackendMember, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    with network(tmp_path, port) as relay:
        settings = {"public_url": f"wss://127.0.0.1:{relay.port}", "drain": "60s", "callers": {"address": "127.0.0.1"}}
        world = own_world(settings=settings, tunnel_port=port)
        world.join(NAME, member, credential=member.by_token)
        agent, server = world.members[NAME].agent, world.server
        with Caller(world.kubeconfig(NAME)).connect() as running:
            running.send(running.request("GET", "/echo", "Connection: Upgrade", "Upgrade: echo"))
            while running.line() != b"\r\n":
                pass
            with logs(agent.log, "tunnel-drains", "the server stops"):
                server.send(signal.SIGTERM)
            running.send(b"in the air")
            with logs(agent.log, "tunnel-resumed"), logs(server.log, "tunnel-resumed", NAME):
                relay.do("cut")
            assert running._reader.read(10) == b"in the air"
            running.send(b"after")
            assert running._reader.read(5) == b"after"
            assert server.returncode is None, "it waits for what runs"
        assert server.wait(BACK) == 0
