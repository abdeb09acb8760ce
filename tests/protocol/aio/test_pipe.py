from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from protocol.aio.pipe import PipeEnd, pipe
from protocol.constants import Code
from protocol.errors import StreamReset, TunnelLost
from tests.protocol.aio.sshpeers import Collect

pytestmark = pytest.mark.asyncio


def made(**more):
    first, second = Collect(), Collect()
    one, two = pipe(first, second, **more)
    first.connection_made(one)
    second.connection_made(two)
    return first, second, one, two


async def test_what_one_end_writes_the_other_has_at_once():
    first, second, one, two = made()
    one.write(b"abc")
    two.write(memoryview(b"xyz"))
    assert (bytes(second.data), bytes(first.data)) == (b"abc", b"xyz")
    assert (one.bytes_out, one.bytes_in, two.bytes_out, two.bytes_in) == (3, 3, 3, 3)


async def test_a_paused_reader_pauses_the_writer_and_loses_nothing():
    first, second, one, two = made()
    two.pause_reading()
    assert not first.writable.is_set()
    one.write(b"under way")
    one.write_eof()
    assert not second.data
    assert one.get_write_buffer_size() == 9
    two.resume_reading()
    await asyncio.sleep(0)
    assert bytes(second.data) == b"under way"
    assert second.eof.is_set()
    assert first.writable.is_set()


async def test_half_close_leaves_the_other_direction_open():
    first, second, one, two = made()
    one.write_eof()
    assert second.eof.is_set()
    one.write(b"too late")
    two.write(b"answer")
    assert (bytes(second.data), bytes(first.data)) == (b"", b"answer")
    two.close()
    assert await first.lost is None
    assert await second.lost is None


async def test_close_hands_on_what_is_under_way_first():
    first, second, one, two = made()
    two.pause_reading()
    one.write(b"last")
    one.close()
    await asyncio.sleep(0.01)
    assert not second.lost.done()
    two.resume_reading()
    assert await second.lost is None
    assert bytes(second.data) == b"last"
    assert second.eof.is_set()
    assert await first.lost is None


async def test_reset_tells_the_other_end_that_it_was_cut():
    gone = []
    first, second, one, two = made(on_lost=lambda: gone.append(1))
    two.pause_reading()
    one.write(b"dropped")
    one.reset(Code.CANCELLED, "the caller is gone")
    one.reset(Code.CANCELLED, "twice")
    error = await second.lost
    assert isinstance(error, StreamReset)
    assert error.text == "the caller is gone"
    assert await first.lost is None
    assert not second.data
    assert gone == [1]
    one.write(b"x")
    two.write(b"x")


async def test_a_cut_from_outside_tells_both():
    first, second, one, two = made()
    one.cut(TunnelLost(Code.DEAD_PEER, "silent"))
    assert isinstance(await first.lost, TunnelLost)
    assert isinstance(await second.lost, TunnelLost)
    assert one.is_closing()
    assert two.is_closing()


async def test_an_end_that_has_heard_enough_closes():
    class Enough(Collect):
        def eof_received(self):
            return False

    first, second = Collect(), Enough()
    one, _ = pipe(first, second)
    one.write_eof()
    assert await second.lost is None
    assert await first.lost is None
    assert first.eof.is_set()


@pytest.mark.parametrize("call", ["data_received", "eof_received", "resume_writing", "late_data", "late_eof"])
async def test_a_protocol_that_fails_ends_its_stream_for_both_and_is_heard_of(call: str) -> None:
    """As a caller's socket that is gone already: its end must still be told, or whoever counts it waits for good."""
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context["exception"]))
    over: list[bool] = []
    first, second, one, two = made(on_lost=lambda: over.append(True))

    def fail(*_args: Any) -> None:
        raise OSError("gone already")

    setattr(first, call.replace("late_data", "data_received").replace("late_eof", "eof_received"), fail)
    if call == "resume_writing":
        two.pause_reading()
        two.resume_reading()
    elif call.startswith("late"):
        one.pause_reading()
        two.write(b"kept" if call == "late_data" else b"")
        two.close()
        one.resume_reading()
    elif call == "data_received":
        two.write(b"at once")
    else:
        two.close()
    async with asyncio.timeout(30):
        assert isinstance(await first.lost, StreamReset)
        await second.lost
    assert over == [True]
    assert [str(each) for each in failures] == ["gone already"]


async def test_whoever_pauses_behind_a_reset_hears_of_it_when_it_reads_on():
    first, second, one, two = made()
    two.abort()
    one.pause_reading()
    await asyncio.sleep(0)
    one.resume_reading()
    async with asyncio.timeout(30):
        assert isinstance(await first.lost, StreamReset)
        await second.lost


OPERATIONS: dict[str, Callable[[PipeEnd], None]] = {
    "write": lambda end: end.write(b"something"),
    "pause": lambda end: end.pause_reading(),
    "resume": lambda end: end.resume_reading(),
    "end": lambda end: end.write_eof(),
    "close": lambda end: end.close(),
    "abort": lambda end: end.abort(),
}


async def test_in_whatever_order_its_ends_are_used_both_are_told_of_their_end():
    for seed in range(300):
        chance, over = random.Random(seed), list[bool]()
        first, second, one, two = made(on_lost=lambda over=over: over.append(True))
        for _ in range(chance.randrange(2, 40)):
            (name,) = chance.choices(tuple(OPERATIONS), (3, 2, 2, 0.4, 0.2, 0.1))
            OPERATIONS[name](chance.choice((one, two)))
            if chance.random() < 0.1:
                await asyncio.sleep(0)
        closes, reads = (one, two) if chance.random() < 0.5 else (two, one)
        closes.close()
        reads.resume_reading()
        async with asyncio.timeout(30):
            await first.lost
            await second.lost
        assert over == [True], seed
