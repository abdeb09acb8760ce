"""Who is waited for before more is accepted, and who has to go when all places are taken; on a clock of the test's."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from protocol.aio.strangers import BEGINNING, GOOD_NAME, MAX_NETWORKS, PROVEN, UNDER_WAY, YOUNG, Strangers

HONEST, SITTER = "192.0.2.1", "198.51.100.1"


@dataclass(eq=False)
class One:
    room: Room
    silent: bool = True

    def give_way(self) -> None:
        self.room.gone.append(self)
        self.room.strangers.leave(self)

    def abort(self, reason: str) -> None:
        raise AssertionError(reason)


@dataclass
class Room:
    most: int = 1024
    now: float = 100.0
    gone: list[One] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.strangers = Strangers(self.most, lambda: self.now)

    def come(self, network: str = HONEST, *, silent: bool = True, times: int = 1) -> list[One]:
        found = [One(self, silent) for _ in range(times)]
        assert all(self.strangers.enter(each, network) for each in found)
        return found

    def prove(self, network: str = HONEST, times: int = PROVEN) -> None:
        for each in self.come(network, silent=False, times=times):
            self.strangers.leave(each, proven=True)

    async def waits(self) -> bool:
        """Whether nobody more is accepted now."""
        room = asyncio.ensure_future(self.strangers.room())
        await asyncio.sleep(0)
        waiting = not room.done()
        room.cancel()
        await asyncio.wait([room])
        return waiting


@pytest.mark.asyncio
async def test_who_comes_in_a_storm_waits_until_one_of_those_under_way_is_in() -> None:
    room = Room()
    room.prove()
    first, *_ = room.come(times=UNDER_WAY)
    assert await room.waits()
    opened = asyncio.ensure_future(room.strangers.room())
    await asyncio.sleep(0)
    room.strangers.leave(first, proven=True)
    async with asyncio.timeout(30):
        await opened
    assert not await room.waits()


@pytest.mark.asyncio
async def test_fewer_are_not_waited_for() -> None:
    room = Room()
    room.prove()
    room.come(times=UNDER_WAY - 1)
    assert not await room.waits()


@pytest.mark.asyncio
async def test_silence_without_anybody_who_proves_themselves_holds_up_nobody_for_long() -> None:
    room = Room()
    room.come(SITTER, times=UNDER_WAY)
    assert await room.waits(), "the first of a storm have had no time yet"
    room.now += BEGINNING
    assert not await room.waits()
    for _ in range(10):
        room.come(SITTER, times=UNDER_WAY)
        assert not await room.waits(), "it goes on, and is no beginning"
        room.now += YOUNG / 2
    room.prove(times=PROVEN - 1)
    assert not await room.waits()
    room.prove(times=1)
    assert await room.waits()
    room.now += YOUNG
    room.come(SITTER, times=UNDER_WAY)
    assert not await room.waits(), "the proofs are of long ago"
    room.now += 2 * YOUNG
    room.come(SITTER, times=UNDER_WAY)
    assert await room.waits(), "another beginning"


@pytest.mark.asyncio
async def test_who_takes_long_is_waited_for_no_more() -> None:
    room = Room()
    room.come(times=UNDER_WAY // 2)
    room.now += YOUNG
    room.prove()
    room.come(times=UNDER_WAY // 2)
    assert not await room.waits()
    room.come(times=UNDER_WAY // 2)
    assert await room.waits()


@pytest.mark.asyncio
async def test_a_network_that_wastes_places_is_not_waited_for_in_a_storm_of_others() -> None:
    room = Room()
    for each in room.come(SITTER, times=5):
        room.strangers.leave(each)
    room.prove()
    room.come(SITTER, times=UNDER_WAY * 2)
    assert not await room.waits(), "whoever says nothing would set the pace"
    room.come(HONEST, times=UNDER_WAY)
    assert await room.waits()


@pytest.mark.asyncio
async def test_a_bad_name_is_made_good_by_proofs_and_a_good_one_lost_by_waste() -> None:
    room = Room()
    for each in room.come(HONEST, times=1000):
        room.strangers.leave(each)
    room.prove(times=GOOD_NAME)
    room.come(times=UNDER_WAY)
    assert await room.waits()
    for _ in range(4):
        room.prove(times=GOOD_NAME)
    for each in room.come(HONEST, times=2 * GOOD_NAME):
        room.strangers.leave(each)
    assert not await room.waits()


@pytest.mark.asyncio
async def test_a_wait_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.aio.strangers.YOUNG", 0.05)
    loop = asyncio.get_running_loop()
    strangers = Strangers(1024, loop.time)
    room = Room()
    room.strangers = strangers
    room.prove()
    room.come(times=UNDER_WAY)
    async with asyncio.timeout(30):
        await strangers.room()
    assert len(strangers) == UNDER_WAY


def test_the_oldest_of_those_who_long_said_nothing_goes_even_for_a_neighbour() -> None:
    room = Room(most=4)
    spoken, sits, *_ = *room.come(SITTER, silent=False), *room.come(SITTER, times=3)
    room.now += YOUNG
    room.come(SITTER)
    assert room.gone == [sits]
    room.come(HONEST)
    assert spoken not in room.gone
    assert len(room.strangers) == 4


def test_one_network_gives_way_to_another_with_fewer_and_to_itself_only_by_silence() -> None:
    room = Room(most=4)
    oldest, *_ = room.come(SITTER, silent=False, times=4)
    assert not room.strangers.enter(One(room), SITTER)
    room.come(HONEST)
    assert room.gone == [oldest]


def test_two_networks_do_not_take_each_others_places_in_turn() -> None:
    room = Room(most=4)
    room.come(SITTER, silent=False, times=2)
    room.come(HONEST, silent=False, times=2)
    assert not room.strangers.enter(One(room), HONEST)
    assert not room.gone


def test_what_is_remembered_of_networks_is_bounded() -> None:
    room = Room()
    for number in range(MAX_NETWORKS + 100):
        room.prove(f"2001:db8:{number:x}::/64", times=1)
    assert len(room.strangers._names) == MAX_NETWORKS
    assert len(room.strangers) == 0
    assert not room.strangers._held
