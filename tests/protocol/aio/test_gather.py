"""When small writes wait for one another: asked with times, and seen in how many messages leave a tunnel."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from protocol.aio import gather
from protocol.aio.busypoll import SHORT
from protocol.aio.gather import LONGEST, Gather
from protocol.constants import Code
from protocol.errors import StreamReset
from tests.protocol.aio.tunnels import Echo, Recorder, accepting, tower

NOW = 1000.0


def wrote(gather: Gather, *sizes: int) -> Gather:
    for size in sizes:
        gather.wrote(size)
    return gather


@pytest.fixture
def several() -> Gather:
    """Two writes left together just now."""
    gather = wrote(Gather(), 100, 100)
    assert not gather.waits(NOW)
    return gather


def test_a_write_that_is_alone_never_waits() -> None:
    gather = Gather()
    for turn in range(5):
        assert not wrote(gather, 100).waits(NOW + turn * LONGEST / 10)


def test_after_several_a_write_waits_until_a_turn_brings_no_more(several) -> None:
    assert wrote(several, 100).waits(NOW)
    assert wrote(several, 100).waits(NOW)
    assert not several.waits(NOW)


def test_after_one_that_waited_in_vain_the_next_does_not_wait(several) -> None:
    assert wrote(several, 100).waits(NOW)
    assert not several.waits(NOW)
    assert not wrote(several, 100).waits(NOW)


def test_no_write_waits_longer_than_the_bound(several) -> None:
    assert wrote(several, 1).waits(NOW)
    assert wrote(several, 1).waits(NOW + 0.9 * LONGEST)
    assert not wrote(several, 1).waits(NOW + LONGEST)
    assert wrote(several, 1).waits(NOW + 10 * LONGEST), "the next has a time of its own"


def test_bulk_does_not_wait(several) -> None:
    assert not wrote(several, SHORT - 1, 1).waits(NOW)


def test_frames_without_data_do_not_wait_and_change_nothing(several) -> None:
    assert not several.waits(NOW)
    assert wrote(several, 100).waits(NOW)


@pytest.mark.asyncio
@pytest.mark.parametrize("together", [True, False])
async def test_what_several_streams_write_in_turns_leaves_in_one_message(
    together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "LONGEST", 10.0)  # a turn takes as long as a busy machine lets it
    async with tower() as made:
        server, _agent = await made.pair(accepting(*(Echo() for _ in range(4))))
        callers = [Recorder() for _ in range(4)]
        streams = [await server.open("kubernetes", caller) for caller in callers]
        messages: list[int] = []
        link: Any = server._link
        send = link.write

        def counted(buffers: Sequence[bytes]) -> int:
            messages.append(sum(b"turn" in bytes(buffer) for buffer in buffers))
            return int(send(buffers))

        for stream in streams if together else streams[:1]:
            stream.write(b"first")
        await asyncio.gather(*(caller.bytes(5) for caller in (callers if together else callers[:1])))
        monkeypatch.setattr(link, "write", counted)
        for stream in streams:
            stream.write(b"turn")
            await asyncio.sleep(0)
        for caller in callers:
            await caller.until(lambda caller=caller: caller.received.endswith(b"turn"))
        carrying = [count for count in messages if count]
        assert carrying == ([4] if together else [1, 1, 1, 1])


@pytest.mark.asyncio
async def test_an_end_that_is_said_while_a_write_waits_leaves_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "LONGEST", 10.0)
    far = [Recorder() for _ in range(3)]
    async with tower() as made:
        server, _agent = await made.pair(accepting(*far))
        streams = [await server.open("kubernetes", Recorder()) for _ in far]
        for stream in streams:
            stream.write(b"first ")
        await asyncio.gather(*(each.bytes(6) for each in far))
        for stream in streams:
            stream.write(b"last")
            await asyncio.sleep(0)
        finished, closed, cut = streams
        finished.write_eof()
        closed.close()
        cut.reset(Code.REVOKED, "revoked")
        await asyncio.gather(far[0].saw("eof"), far[1].saw("lost"), far[2].saw("lost"))
        assert bytes(far[0].received) == bytes(far[1].received) == b"first last"
        assert isinstance(far[2].error, StreamReset)
        server.drain(Code.SHUTDOWN, "drains", deadline=1.0, retry_after=0.0)
        finished.reset(Code.CANCELLED, "over")
        server.close(Code.SHUTDOWN, "over")
        await far[0].saw("lost")
        assert not server._busy_poll.held
