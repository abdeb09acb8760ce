"""What callers and operators see while a member is away, and when it comes back: nobody waits without end or reason.

The tower of this module is reached through a relay that can fail, and its limits of silence are short.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol import defaults
from tests.kubernetes.rawhttp import Answer, Connection
from tests.lab.processes import wait_until
from tests.lab.world import TowerWorld
from tests.loopback.callers import Caller, ended, health_port, logs, metrics, moves, ticks_until_end, watching
from tests.loopback.member import BackendMember
from tests.loopback.relay import Network

pytestmark = pytest.mark.slow
NAME, STEADY = "shaky", "steady"
WAITERS = 3
WINDOW = 4.0
CONSTANTS = {
    "PING_INTERVAL": 0.5,
    "DEAD_AFTER": 3.0,
    "RESUME_WINDOW": WINDOW,
    "PROBE_INTERVAL": 0.5,
    "BACKOFF_MAX": 1.0,
}
BACK = 60.0


@pytest.fixture(scope="module")
def backend(place: Path) -> Iterator[BackendMember]:
    with BackendMember(place / "member") as made:
        yield made


@pytest.fixture(scope="module")
def tower(place: Path, net: tuple[Network, int], backend: BackendMember, member: BackendMember) -> Iterator[TowerWorld]:
    relay, port = net
    settings = {
        "public_url": f"wss://127.0.0.1:{relay.port}",
        "callers": {"address": "127.0.0.1", "hold_waiters": WAITERS},
    }
    with TowerWorld(place / "w", settings=settings, constants=CONSTANTS, tunnel_port=port) as world:
        world.join(NAME, backend, credential=backend.by_token)
        entry = {"hosts": [{"name": world.host, "url": f"wss://127.0.0.1:{port}"}]}  # not by way of the relay
        world.join(STEADY, member, credential=member.by_token, settings=entry)
        yield world


@pytest.fixture
def relay(net: tuple[Network, int]) -> Network:
    return net[0]


@pytest.fixture(scope="module")
def caller(tower: TowerWorld) -> Caller:
    return Caller(tower.kubeconfig(NAME))


@pytest.fixture(scope="module")
def steady_stream(tower: TowerWorld) -> Iterator[Callable[[], None]]:
    with watching(Caller(tower.kubeconfig(STEADY))) as goes_on:
        yield goes_on


@pytest.fixture(autouse=True)
def around(tower: TowerWorld, caller: Caller, steady_stream: Callable[[], None]) -> Iterator[None]:
    """The member is well before each test, and no outage of it is felt by the other one."""
    tower.until_state(NAME, "Connected", deadline=BACK)
    yield
    if tower.members[NAME].agent.returncode is not None:
        tower.restart_agent(NAME)
    steady_stream()


def status_of(answer: Answer) -> str:
    document = json.loads(answer.body)
    assert (answer.status, document["kind"], document["code"]) == (503, "Status", 503)
    assert document["reason"] == "ServiceUnavailable"
    return str(document["message"])


def retry_after(answer: Answer) -> str | None:
    return dict(answer.headers).get("retry-after")


def waiting(tower: TowerWorld) -> float:
    return metrics(tower)[f'tower_callers_waiting{{member_cluster="{NAME}"}}']


def gone(tower: TowerWorld) -> None:
    wait_until(lambda: not tower.call("GET", f"/v1/tunnels?cluster={NAME}")[1]["items"], "no tunnel", BACK)


def away(tower: TowerWorld) -> None:
    """No tunnel has a link; one may still come back."""
    found = f"/v1/tunnels?cluster={NAME}"
    wait_until(
        lambda: all(each["state"] == "Detached" for each in tower.call("GET", found)[1]["items"]), "no link", BACK
    )


def drain(connection: Connection) -> None:
    """Reads to the end, which raises where it is not an orderly one."""
    while connection.line():
        pass


class Asking:
    """A request in a thread, which may have to wait for its answer."""

    def __init__(self, caller: Caller, path: str = "/held") -> None:
        self.answer: Answer | None = None
        self.began, self.seconds = time.monotonic(), 0.0
        self._thread = threading.Thread(target=self._ask, args=(caller, path))
        self._thread.start()

    def _ask(self, caller: Caller, path: str) -> None:
        self.answer = caller.ask(path)
        self.seconds = time.monotonic() - self.began

    def done(self) -> Answer:
        self._thread.join(20.0)
        assert self.answer is not None
        return self.answer


# ---- no tunnel -------------------------------------------------------------------------------------------------------


def test_a_cluster_that_never_connected_is_503_at_once(tower: TowerWorld) -> None:
    tower.towerctl("add", "cluster", "empty")
    caller = Caller(tower.kubeconfig("empty"))
    series = 'tower_error_responses_total{code="TWR200",member_cluster="empty"}'
    with moves(tower, series), logs(tower.server.log, "connection", "empty", "answered", "TWR200"):
        began = time.monotonic()
        answer = caller.ask("/never")
        assert time.monotonic() - began < defaults.HOLD
    assert "no agent of this cluster has ever connected" in status_of(answer)
    assert retry_after(answer) is None
    assert caller.ask("/never", method="HEAD").body == b""


def test_a_killed_agent_cuts_its_streams_with_a_reason_and_new_callers_are_held_then_told_why(
    tower: TowerWorld, caller: Caller
) -> None:
    with caller.connect() as running, logs(tower.server.log, "connection", "cut: ", NAME):
        running.send(running.request("GET", "/watch"))
        assert running.line().startswith(b"HTTP/1.1 200")
        killed = time.monotonic()
        tower.members[NAME].agent.send(signal.SIGKILL)
        with pytest.raises(OSError, match=r"(?i)eof|reset"):  # never an end that looks complete
            drain(running)
        assert time.monotonic() - killed < WINDOW + 2.0  # nobody can tell it from a cut link before
    gone(tower)
    first = Asking(caller)
    answer = first.done()
    assert first.seconds < 3.0
    assert "no tunnel since" in status_of(answer)
    assert retry_after(answer) is None  # the hold was in vain: a retry is no more likely to get through
    second = Asking(caller)
    assert "TWR201" in status_of(second.done())
    assert second.seconds < defaults.HOLD
    found = tower.cluster(NAME)
    assert (found["state"], found["ready"], found["code"]) == ("TunnelDown", "False", "TWR201")


def test_a_stopped_agent_says_goodbye_and_callers_are_told_so(tower: TowerWorld, caller: Caller) -> None:
    assert tower.members[NAME].agent.stop() == 0
    gone(tower)
    asking = Asking(caller)
    said = status_of(asking.done())
    assert asking.seconds < 3.0
    assert "stop" in said


def test_a_caller_is_held_until_the_agent_is_back_and_then_served(
    tower: TowerWorld, caller: Caller, relay: Network
) -> None:
    relay.do("shut")
    away(tower)
    asking = Asking(caller)
    wait_until(lambda: waiting(tower) == 1, "a caller that waits", 5.0)
    relay.do("open")
    assert asking.done().status == 200
    assert waiting(tower) == 0


def test_no_more_callers_wait_than_may_and_the_rest_is_told_at_once(
    tower: TowerWorld, caller: Caller, relay: Network
) -> None:
    relay.do("shut")
    away(tower)
    try:
        held = [Asking(caller) for _ in range(WAITERS)]
        wait_until(lambda: waiting(tower) == WAITERS, "callers that wait", 5.0)
        more = Asking(caller)
        answer = more.done()
        assert more.seconds < defaults.HOLD
        assert "too many callers wait" in status_of(answer)
        assert retry_after(answer) == "1"  # the return is still likely
        for asking in held:
            assert status_of(asking.done())
            assert asking.seconds < 3.0
    finally:
        relay.do("open")


def test_a_caller_that_gives_up_waits_no_longer(tower: TowerWorld, caller: Caller, relay: Network) -> None:
    relay.do("shut")
    away(tower)
    try:
        with caller.plain():
            wait_until(lambda: waiting(tower) == 1, "a caller that waits", 5.0)
        wait_until(lambda: waiting(tower) == 0, "nobody who waits", 1.0)
    finally:
        relay.do("open")


def test_no_tunnel_answer_close_says_nothing_at_all(own_world: Callable[..., TowerWorld]) -> None:
    silent = own_world(settings={"callers": {"address": "127.0.0.1", "no_tunnel_answer": "close"}})
    silent.towerctl("add", "cluster", NAME)
    caller = Caller(silent.kubeconfig(NAME))
    with logs(silent.server.log, "connection", NAME, "TWR200"), caller.plain() as bare:
        began = time.monotonic()
        assert ended(bare) == b""
        assert time.monotonic() - began < defaults.HOLD


# ---- faults of the link ----------------------------------------------------------------------------------------------


def test_a_cut_link_is_back_within_moments_and_both_ends_say_why(
    tower: TowerWorld, caller: Caller, relay: Network
) -> None:
    agent = tower.members[NAME].agent
    with logs(agent.log, "tunnel-cut"), logs(agent.log, "tunnel-resumed"):
        relay.do("cut")
        gone_at = time.monotonic()
        assert Asking(caller).done().status == 200
        assert time.monotonic() - gone_at < 3.0
    history = tower.cluster(NAME)["history"]
    assert [entry["event"] for entry in history[:2]] == ["resumed", "detached"]
    assert history[1]["text"]


def test_a_half_open_link_is_found_dead_by_both_ends(tower: TowerWorld, caller: Caller, relay: Network) -> None:
    series = f'tower_tunnel_closes_total{{cause="DEAD_PEER",member_cluster="{NAME}"}}'
    agent = tower.members[NAME].agent
    try:
        with moves(tower, series), logs(agent.log, "tunnel-down", "DEAD_PEER"), caller.connect() as running:
            running.send(running.request("GET", "/watch"))
            relay.do("stall")
            began = time.monotonic()
            assert ticks_until_end(running) - began < 2 * CONSTANTS["DEAD_AFTER"] + WINDOW
            gone(tower)
            wait_until(lambda: "DEAD_PEER" in agent.log.read_text(), "the agent's own finding", 10.0)
    finally:
        relay.do("cut")
        relay.do("flow")
    tower.until_state(NAME, "Connected", deadline=BACK)


def test_a_corrupted_byte_ends_the_link_and_what_was_sent_arrives(
    tower: TowerWorld, caller: Caller, relay: Network
) -> None:
    with caller.connect() as running:
        running.send(running.request("GET", "/bytes/50000000"))
        relay.do("corrupt")
        answer = running.answer()
        assert len(answer.body) == 50_000_000
        assert answer.body.strip(b"z") == b""
    assert Asking(caller).done().status == 200


def test_an_agent_that_is_frozen_is_given_up_and_welcomed_back(tower: TowerWorld, caller: Caller) -> None:
    agent = tower.members[NAME].agent
    agent.send(signal.SIGSTOP)
    try:
        gone(tower)
        asking = Asking(caller)
        assert "nothing heard from the peer" in status_of(asking.done())
        assert asking.seconds < 3.0
    finally:
        agent.send(signal.SIGCONT)
    tower.until_state(NAME, "Connected", deadline=BACK)
    assert caller.ask("/thawed").status == 200


# ---- the member's apiserver ------------------------------------------------------------------------------------------


def test_an_apiserver_that_is_down_is_502_and_told_from_a_tunnel_that_is(
    tower: TowerWorld, caller: Caller, backend: BackendMember
) -> None:
    backend.stop()
    try:
        answer = caller.ask("/down")
        document = json.loads(answer.body)
        assert (answer.status, document["kind"]) == (502, "Status")
        assert "TWR301" in document["message"]
        assert str(backend.port) in document["message"]
        tower.until_state(NAME, "ApiserverDown", deadline=BACK)
        assert tower.cluster(NAME)["ready"] == "False"
        assert tower.call("GET", f"/v1/tunnels?cluster={NAME}")[1]["items"]
    finally:
        backend.start()
    tower.until_state(NAME, "Connected", deadline=BACK)


def test_an_apiserver_that_is_not_ready_makes_the_cluster_not_ready(
    tower: TowerWorld, caller: Caller, backend: BackendMember
) -> None:
    (backend.folder / "unready").touch()
    try:
        tower.until_state(NAME, "ApiserverDown", deadline=BACK)
        assert "no etcd" in tower.cluster(NAME)["cause"]
        assert caller.ask("/still-relayed").status == 200
    finally:
        (backend.folder / "unready").unlink()


def test_an_answer_that_breaks_off_does_not_look_complete(caller: Caller) -> None:
    with pytest.raises((http.client.IncompleteRead, OSError)):
        caller.ask("/cut")


def test_the_agents_health_follows_its_tunnel(tower: TowerWorld, relay: Network) -> None:
    def ready() -> tuple[int, Any]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", health_port(tower, NAME), timeout=30)) as asked:
            asked.request("GET", "/readyz")
            answer = asked.getresponse()
            return answer.status, answer.read()

    assert ready()[0] == 200
    relay.do("shut")
    try:
        wait_until(lambda: ready()[0] == 503, "/readyz of an agent without a tunnel", BACK)
        assert b"TWR" in ready()[1]
    finally:
        relay.do("open")
    wait_until(lambda: ready()[0] == 200, "/readyz of an agent with a tunnel", BACK)
