"""Agents that are asked to move: how many, which, and when none."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from protocol.constants import SUBPROTOCOL
from tower_server.replicas.balance import DEADLINE, MOST_AT_ONCE, SPREAD, Balance, surplus


class Tunnel:
    def __init__(self, *, streams: int = 1, dialect: str = SUBPROTOCOL) -> None:
        self.id, self.peer = "t", SimpleNamespace(agent="a")
        self.stream_count, self.dialect = streams, dialect
        self.asked: list[dict[str, Any]] = []

    def drain(self, _code: Any, _text: str, **when: Any) -> None:
        self.asked.append(when)


def member(name: str, *tunnels: Tunnel, elsewhere: int = 0) -> Any:
    class Found:
        @property
        def serving(self) -> list[Tunnel]:
            return [each for each in tunnels if not each.asked]

        @property
        def tunnels_of_host(self) -> int:
            return len(self.serving) + elsewhere

    found = Found()
    found.name = name  # type: ignore[attr-defined]
    return found


def balance(members: list[Any], others: dict[str, int], *, ready: bool = True) -> Balance:
    registry: Any = SimpleNamespace(members={each.name: each for each in members})
    made = Balance(registry, others=lambda: others, ready=lambda: ready)
    made.look()  # the first look only learns who is there
    return made


@pytest.mark.parametrize(
    ("mine", "others", "moved"),
    [
        (1000, [], 0),
        (2, [0, 0], 0),
        (4, [0, 0], 1),
        (40, [0, 0], 4),
        (1000, [0, 0], MOST_AT_ONCE),
        (350, [330, 320], 0),
        (400, [300, 300], 40),
        (10, [500, 500], 0),
    ],
)
def test_a_server_lets_go_a_part_of_what_it_has_above_its_share(mine: int, others: list[int], moved: int) -> None:
    assert surplus(mine, others) == moved


@pytest.mark.parametrize("seed", range(20))
def test_whoever_is_asked_comes_back_anywhere_and_all_are_at_rest_soon(seed: int) -> None:
    chance = random.Random(seed)
    held = [600, 0, 0]
    looks, moved = 0, 1
    while moved:
        assert (looks := looks + 1) < 40
        moved = 0
        for index in range(3):
            going = surplus(held[index], held[:index] + held[index + 1 :])
            held[index] -= going
            for _ in range(going):
                held[chance.randrange(3)] += 1
            moved += going
    assert sum(held) == 600
    assert max(held) <= 1.1 * 200 + 1


def test_only_a_cluster_with_another_tunnel_is_asked_and_one_of_its_tunnels_at_a_time() -> None:
    alone, busy, idle = Tunnel(), Tunnel(streams=9), Tunnel(streams=2)
    single = [member(f"s{number}", Tunnel()) for number in range(30)]
    found = balance([*single, member("alone", alone), member("pair", busy, idle)], {"b": 0})
    assert found.look() == 1
    assert (busy.asked, alone.asked) == ([], [])
    (when,) = idle.asked
    assert when["deadline"] == DEADLINE
    assert 0 <= when["retry_after"] <= SPREAD < DEADLINE, "the next tunnel is opened before the old one ends"
    assert found.look() == 0, "of what is left each is the only one of its cluster"


def test_of_a_cluster_whose_tunnels_all_stand_here_one_goes_first() -> None:
    shared = [(Tunnel(), member(f"shared{number}", Tunnel(), elsewhere=1)) for number in range(20)]
    two, three = Tunnel(), Tunnel()
    found = balance([*(each for _, each in shared), member("both", two, three)], {"b": 2})
    assert found.look() == 2
    assert len(two.asked) + len(three.asked) == 1


def test_go_agents_stay_for_nobody_can_ask_them() -> None:
    tunnels = [Tunnel(dialect="kubesphere-v1") for _ in range(20)]
    assert balance([member(f"m{n}", each, elsewhere=1) for n, each in enumerate(tunnels)], {"b": 0}).look() == 0


def test_nobody_is_moved_while_servers_come_and_go_or_this_one_stops() -> None:
    many = [member(f"m{number}", Tunnel(), Tunnel()) for number in range(20)]
    others = {"b": 0}
    found = balance(many, others)
    others["c"] = 0
    assert found.look() == 0
    del others["b"]
    assert found.look() == 0
    assert balance(many, {"b": 0}, ready=False).look() == 0
    assert found.look() > 0
