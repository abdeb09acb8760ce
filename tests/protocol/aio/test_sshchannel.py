from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, cast

import pytest

from protocol.aio.sshchannel import SEND_HIGH, Channel
from protocol.constants import Code
from protocol.errors import StreamRefused, StreamReset, TunnelLost
from tests.protocol.aio.sshpeers import MIB, Collect, Echo, Pair, channel_limits, connected
from tests.waiting import until

pytestmark = pytest.mark.asyncio


async def opened(pair: Pair, end: Collect | None = None) -> tuple[Channel, Collect]:
    end = end or Collect()
    channel = pair.server.open("somewhere:1", end)
    end.connection_made(channel)
    async with asyncio.timeout(30):
        await end.accepted.wait()
    return channel, end


def held_by(held: list[Channel]) -> Callable[[Channel, bytes], None]:
    """Takes every channel, and keeps it there."""

    def take(channel: Channel, target: bytes) -> None:
        held.append(channel)
        channel.accept(Collect())

    return take


def end_of(channel: Channel) -> Collect:
    return cast("Collect", channel.get_protocol())


async def settled(pair: Pair) -> None:
    """Both ends have forgotten every channel."""
    await until(lambda: not pair.server.channel_count and not pair.agent.channel_count)


async def test_bytes_go_both_ways_and_the_budget_comes_back() -> None:
    limits, theirs = channel_limits(), channel_limits()
    async with connected(take=lambda channel, _: channel.accept(Echo()), limits=limits, agent_limits=theirs) as pair:
        channel, end = await opened(pair)
        assert limits.budget.used > 0
        channel.write(b"a" * 100_000)
        channel.write(memoryview(b"b" * 10))
        channel.write_eof()
        async with asyncio.timeout(30):
            assert await end.lost is None
        assert bytes(end.data) == b"a" * 100_000 + b"b" * 10
        assert (channel.bytes_out, channel.bytes_in) == (100_010, 100_010)
        await settled(pair)
        assert limits.budget.used == theirs.budget.used == 0


async def test_data_written_before_the_answer_leaves_after_it() -> None:
    held: list[Channel] = []
    async with connected(take=lambda channel, _: held.append(channel)) as pair:
        end = Collect()
        channel = pair.server.open("slow:1", end)
        channel.write(b"early")
        await until(lambda: held)
        assert not end.accepted.is_set()
        held[0].accept(Echo())
        await until(lambda: bytes(end.data) == b"early")


async def test_what_is_written_overtakes_neither_its_own_channel_nor_others_in_line() -> None:
    got = bytearray()

    class Note(Collect):
        def data_received(self, data: bytes) -> None:
            got.extend(data)

    async with connected(take=lambda channel, _: channel.accept(Note())) as pair:
        (one, _), (two, _) = await opened(pair), await opened(pair)
        room, pair.server.room = pair.server.room, lambda: False
        one.write(b"1")
        pair.server.room = room  # there is room again, and nobody has been told yet
        two.write(b"2")
        one.write(b"3")
        two.write(b"4")
        await until(lambda: len(got) >= 4)
        assert got == b"1234"


@pytest.mark.parametrize("first", ["here", "there"])
async def test_a_channel_is_over_when_both_directions_have_ended_though_nobody_closes_it(first: str) -> None:
    far: list[Channel] = []
    limits = channel_limits()
    async with connected(take=held_by(far), limits=limits) as pair:
        channel, end = await opened(pair)
        ends = [(channel, end_of(far[0])), (far[0], end)]
        for writer, reader in ends if first == "here" else reversed(ends):
            writer.write(b"last words")
            writer.write_eof()
            async with asyncio.timeout(30):
                await reader.eof.wait()
            assert reader.data == b"last words"
        async with asyncio.timeout(30):
            assert await end.lost is None
        await settled(pair)
        assert limits.budget.used == 0


async def test_a_refusal_carries_its_reason() -> None:
    async with connected(take=lambda channel, _: channel.refuse(2, "no route to host")) as pair:
        end = Collect()
        pair.server.open("nowhere:1", end)
        async with asyncio.timeout(30):
            error = await end.lost
        assert isinstance(error, StreamRefused)
        assert error.code == Code.DIAL_FAILED
        assert "no route to host" in error.text
        await settled(pair)


@pytest.mark.slow
async def test_a_reader_that_stops_stops_its_own_channel_only() -> None:
    far: list[Channel] = []
    limits = channel_limits()
    async with connected(take=held_by(far), limits=limits) as pair:
        stopped, stopped_end = await opened(pair)
        _, other = await opened(pair)
        stopped.pause_reading()
        for channel in far:
            channel.write(b"x" * (8 * MIB))
        await until(lambda: len(other.data) >= 8 * MIB)
        assert not stopped_end.data
        assert stopped._held_size <= stopped.credit.window <= 2 * MIB
        assert not end_of(far[0]).writable.is_set()
        stopped.resume_reading()
        await until(lambda: len(stopped_end.data) >= 8 * MIB)
        assert end_of(far[0]).writable.is_set()


async def test_one_byte_packets_to_a_stopped_reader_cost_no_more_than_its_window() -> None:
    far: list[Channel] = []
    async with connected(take=held_by(far)) as pair:
        channel, end = await opened(pair)
        channel.pause_reading()
        for _ in range(5000):
            far[0].write(b"1")
            pair.agent.pump()
        await until(lambda: channel._held_size >= 5000)
        assert len(channel._held) < 10
        channel.resume_reading()
        await until(lambda: len(end.data) >= 5000)


async def test_a_writer_is_paused_by_the_peers_window() -> None:
    far: list[Channel] = []
    async with connected(take=held_by(far)) as pair:
        channel, end = await opened(pair)
        far[0].pause_reading()
        while end.writable.is_set():
            channel.write(b"y" * 65536)
            await asyncio.sleep(0)
        assert channel.get_write_buffer_size() <= SEND_HIGH + 65536
        far[0].resume_reading()
        async with asyncio.timeout(30):
            await end.writable.wait()


async def test_reset_is_an_end_at_once_and_gives_everything_back() -> None:
    far: list[Channel] = []
    limits = channel_limits()
    async with connected(take=held_by(far), limits=limits) as pair:
        channel, end = await opened(pair)
        channel.pause_reading()
        theirs = end_of(far[0])
        far[0].write(b"z" * 100_000)
        await asyncio.sleep(0.05)
        channel.reset(Code.CANCELLED, "the caller is gone")
        channel.reset(Code.CANCELLED, "twice")
        async with asyncio.timeout(30):
            assert await end.lost is None
            await theirs.lost
        await settled(pair)
        assert limits.budget.used == 0


async def test_a_reset_before_the_answer_closes_the_channel_when_it_comes() -> None:
    held: list[Channel] = []
    async with connected(take=lambda channel, _: held.append(channel)) as pair:
        end = Collect()
        channel = pair.server.open("slow:1", end)
        await until(lambda: held)
        channel.reset(Code.CANCELLED, "")
        far = Collect()
        held[0].accept(far)
        async with asyncio.timeout(30):
            await far.lost
        await settled(pair)


async def test_an_open_that_is_given_up_holds_no_memory_and_one_that_was_answered_is_not() -> None:
    held: list[Channel] = []
    limits = channel_limits()
    async with connected(take=lambda channel, _: held.append(channel), limits=limits) as pair:
        end = Collect()
        channel = pair.server.open("slow:1", end)
        await until(lambda: held)
        channel.give_up()
        assert limits.budget.used == 0
        async with asyncio.timeout(30):
            lost = await end.lost
        assert isinstance(lost, StreamRefused)
        assert lost.code == Code.DIAL_TIMEOUT
        far = Collect()
        held[0].accept(far)
        far.transport.write(b"too late")
        async with asyncio.timeout(30):
            await far.lost
        await settled(pair)
        answered = pair.server.open("quick:1", Collect())
        async with asyncio.timeout(30):
            while len(held) < 2:
                await asyncio.sleep(0.01)
            held[1].accept(Echo())
            while answered.opening:
                await asyncio.sleep(0.01)
        answered.give_up()
        assert not answered.is_closing()
        answered.close()
        await settled(pair)


async def test_the_end_of_the_tunnel_is_the_end_of_its_channels() -> None:
    limits = channel_limits()
    async with connected(take=lambda channel, _: channel.accept(Echo()), limits=limits) as pair:
        _, end = await opened(pair)
        pair.agent.end("killed")
        async with asyncio.timeout(30):
            assert isinstance(await end.lost, TunnelLost)
        assert limits.budget.used == 0


async def test_a_protocol_that_fails_loses_its_own_channel_only() -> None:
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))

    class Fails(Collect):
        def data_received(self, data: bytes) -> None:
            raise ValueError("no")

    async with connected(take=lambda channel, _: channel.accept(Echo())) as pair:
        broken, end = await opened(pair, Fails())
        well, other = await opened(pair)
        broken.write(b"boom")
        async with asyncio.timeout(30):
            assert isinstance(await end.lost, StreamReset)
        well.write(b"still here")
        await until(lambda: bytes(other.data) == b"still here")
    assert [type(each["exception"]) for each in failures] == [ValueError]


@pytest.mark.parametrize("kind", ["data", "window", "close"])
async def test_packets_for_a_channel_that_is_not_open_end_the_connection(kind: str) -> None:
    async with connected(take=lambda channel, _: channel.accept(Echo())) as pair:
        channel, _ = await opened(pair)
        number = channel.number
        await asyncio.sleep(0)
        packet = {"data": (94, b"\0\0\0\1x"), "window": (93, b"\0\0\0\1"), "close": (97, b"")}[kind]
        pair.agent.send_packet(packet[0], (number + 7).to_bytes(4, "big"), packet[1])
        async with asyncio.timeout(30):
            await pair.server_owner.lost.wait()
        assert "channel" in pair.server_owner.reason.lower()


async def test_data_beyond_the_window_ends_the_connection() -> None:
    async with connected(take=lambda channel, _: channel.accept(Collect())) as pair:
        channel, _ = await opened(pair)
        channel.pause_reading()
        piece = b"\0\0\x40\0" + b"w" * 16384
        for _ in range(channel.credit.granted // 16384 + 1):
            pair.agent.send_packet(94, channel.number.to_bytes(4, "big"), piece)
        async with asyncio.timeout(30):
            await pair.server_owner.lost.wait()
        assert "window" in pair.server_owner.reason


@pytest.mark.parametrize("more", ["data", "end", "both", "close", "abort"])
async def test_nothing_is_sent_on_a_channel_that_the_peer_has_closed_while_its_data_is_still_read(more: str) -> None:
    """Go's ends lose the whole connection by a packet for a channel that both have closed."""
    held: list[Channel] = []
    async with connected(take=held_by(held)) as pair:
        channel, end = await opened(pair)
        channel.pause_reading()
        held[0].write(b"the last words" * 1000)
        held[0].close()
        await until(lambda: not pair.agent.channel_count)
        if more in ("data", "both"):
            channel.write(b"a caller that still speaks")
        if more in ("end", "both"):
            channel.write_eof()
        if more == "close":
            channel.close()
        elif more == "abort":
            channel.abort()
        channel.resume_reading()
        async with asyncio.timeout(30):
            assert await end.lost is None
        if more not in ("close", "abort"):
            assert bytes(end.data) == b"the last words" * 1000
            assert end.eof.is_set()
        assert await pair.server.request("ping") == (True, b"")
        assert not pair.agent_owner.lost.is_set()
        await settled(pair)


# ---- ends that must be told -----------------------------------------------------------------------------------------


async def closed_by_the_peer(pair: Pair) -> None:
    await until(lambda: not pair.agent.channel_count)


async def test_who_closes_a_channel_without_reading_the_peers_last_words_hears_its_end_at_once() -> None:
    """As a relay does whose other side has gone in order: it paused reading, closes, and never resumes."""
    held: list[Channel] = []
    limits = channel_limits()
    async with connected(take=held_by(held), limits=limits) as pair:
        channel, end = await opened(pair)
        channel.pause_reading()
        held[0].write(b"the last words" * 1000)
        held[0].close()
        await closed_by_the_peer(pair)
        channel.close()
        async with asyncio.timeout(30):
            assert await end.lost is None
        await settled(pair)
        assert limits.budget.used == 0


async def test_a_close_that_waits_for_the_peers_window_ends_when_the_peer_closes() -> None:
    held: list[Channel] = []
    limits = channel_limits()
    async with connected(take=held_by(held), limits=limits) as pair:
        channel, end = await opened(pair)
        held[0].pause_reading()
        channel.pause_reading()
        while channel.window or not channel.get_write_buffer_size():
            channel.write(b"more than it reads" * 4000)
            await asyncio.sleep(0)
        channel.close()
        await asyncio.sleep(0)
        assert not end.lost.done(), "what is queued may still be taken"
        held[0].abort()
        async with asyncio.timeout(30):
            assert await end.lost is None
        await settled(pair)
        assert limits.budget.used == 0


async def test_who_waits_for_room_is_let_go_on_when_the_peer_has_closed() -> None:
    """Its reader is paused for somebody who reads slowly: it would not look at that one's own end meanwhile."""
    held: list[Channel] = []
    async with connected(take=held_by(held)) as pair:
        channel, end = await opened(pair)
        held[0].pause_reading()
        channel.pause_reading()
        held[0].write(b"an answer")
        while end.writable.is_set():
            channel.write(b"a long question" * 4000)
            await asyncio.sleep(0)
        await until(lambda: channel._held_size)
        held[0].abort()
        async with asyncio.timeout(30):
            await end.writable.wait()
        assert not end.lost.done()
        channel.resume_reading()
        async with asyncio.timeout(30):
            assert await end.lost is None
        assert bytes(end.data) == b"an answer"


@pytest.mark.parametrize("call", ["resume_writing", "stream_accepted"])
async def test_a_protocol_that_fails_at_any_callback_stops_no_other_channel(call: str) -> None:
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context["exception"]))

    class Fails(Collect):
        def fail(self) -> None:
            raise ValueError(call)

    setattr(Fails, call, Fails.fail)
    async with connected(take=lambda channel, _: channel.accept(Echo())) as pair:
        well, other = await opened(pair)
        end = Fails()
        broken = pair.server.open("echo:1", end)
        broken.write(b"x" * (SEND_HIGH + 3 * MIB))
        async with asyncio.timeout(30):
            assert isinstance(await end.lost, StreamReset)
        well.write(b"still here")
        await until(lambda: bytes(other.data) == b"still here")
        assert not pair.server_owner.lost.is_set()
    assert [str(each) for each in failures] == [call]


@pytest.mark.parametrize("by", ["the peer", "this end"])
async def test_a_channel_that_is_closed_while_its_end_stands_in_line_sends_nothing_more(by: str) -> None:
    """As under a key exchange, or a full link: a packet behind both CLOSEs costs a Go peer its connection."""
    held: list[Channel] = []
    async with connected(take=held_by(held)) as pair:
        channel, end = await opened(pair)
        room, pair.server.room = pair.server.room, lambda: False
        channel.write_eof()
        (held[0] if by == "the peer" else channel).abort()
        await closed_by_the_peer(pair)
        pair.server.room = room
        pair.server.pump()
        async with asyncio.timeout(30):
            assert await end.lost is None
        assert await pair.server.request("ping") == (True, b"")
        assert not pair.agent_owner.lost.is_set()
        await settled(pair)


OPERATIONS: dict[str, Callable[[random.Random, Channel], None]] = {
    "little": lambda chance, channel: channel.write(b"x" * chance.randrange(1, 5000)),
    "much": lambda chance, channel: channel.write(b"x" * chance.randrange(1, 900_000)),
    "pause": lambda _, channel: channel.pause_reading(),
    "resume": lambda _, channel: channel.resume_reading(),
    "end": lambda _, channel: channel.write_eof(),
    "close": lambda _, channel: channel.close(),
    "abort": lambda _, channel: channel.abort(),
}
WEIGHTS = (4, 1, 2, 2, 1, 0.2, 0.2)


@pytest.mark.slow
async def test_in_whatever_order_channels_are_used_each_end_is_told_and_nothing_is_left() -> None:
    for seed in range(24):
        chance, limits, theirs, far = random.Random(seed), channel_limits(), channel_limits(), list[Channel]()
        rekey = {"rekey_bytes": chance.choice((50_000, 1 << 40))}
        async with connected(take=held_by(far), limits=limits, agent_limits=theirs, server=rekey) as pair:
            both = [await opened(pair) for _ in range(4)]
            both += [(channel, end_of(channel)) for channel in far]
            for _ in range(60):
                channel, _end = chance.choice(both)
                (name,) = chance.choices(tuple(OPERATIONS), WEIGHTS)
                OPERATIONS[name](chance, channel)
                if chance.random() < 0.2:
                    await asyncio.sleep(chance.choice((0, 0.001)))
            for channel, _end in both:
                channel.close()
            async with asyncio.timeout(20):
                for _channel, end in both:
                    await end.lost
                while pair.server.channel_count or pair.agent.channel_count or pair.server.ready or pair.agent.ready:
                    await asyncio.sleep(0.001)
            assert limits.budget.used == theirs.budget.used == 0, seed
            assert [owner.reason for owner in (pair.server_owner, pair.agent_owner)] == ["", ""], seed
