"""One stream as a transport: how it ends, how it pauses, and that a protocol that fails loses nothing but itself."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from protocol.constants import Code
from protocol.defaults import KIB, MIB
from protocol.errors import StreamReset
from protocol.flow import Limits
from tests.protocol.aio.tunnels import Echo, Recorder, accepting, quiet, tower

pytestmark = pytest.mark.asyncio


# ---- ending ---------------------------------------------------------------------------------------------------------


async def test_a_reset_tells_the_peer_why() -> None:
    far, caller = Recorder(), Recorder()
    async with tower() as made:
        server, agent = await made.pair(accepting(far))
        stream = await server.open("kubernetes", caller)
        stream.write(b"x" * 100)
        stream.reset(Code.REVOKED, "the certificate was revoked")
        stream.reset(Code.INTERNAL, "once is enough")
        await far.saw("lost")
        assert isinstance(far.error, StreamReset)
        assert (far.error.code, far.error.text) == (Code.REVOKED, "the certificate was revoked")
        await caller.saw("lost")
        assert caller.error is None
        stream.write(b"ignored")
        stream.write_eof()
        stream.close()
        await quiet(server, agent)
        assert server.stream_count == agent.stream_count == 0


async def test_closing_delivers_what_was_written_to_a_reader_that_pauses() -> None:
    far = Recorder()
    async with tower() as made:
        server, agent = await made.pair(accepting(far))
        stream = await server.open("kubernetes", Recorder())
        await far.saw("made")
        far.transport.pause_reading()
        stream.write(b"y" * 100 * KIB)
        stream.close()
        await quiet(server, agent)
        assert far.calls == ["made"]
        assert agent.stream_count == 1
        assert agent.session.budget.used > 0, "what is held is accounted for"
        far.transport.resume_reading()
        await far.saw("lost")
        assert bytes(far.received) == b"y" * 100 * KIB
        assert far.calls == ["made", "eof", "lost"]
        assert far.error is None
        assert agent.session.budget.used == 0


async def test_a_half_close_is_told_once_however_often_reading_pauses() -> None:
    far = Recorder()
    async with tower() as made:
        server, agent = await made.pair(accepting(far))
        stream = await server.open("kubernetes", Recorder())
        await far.saw("made")
        far.transport.pause_reading()
        stream.write(b"z")
        stream.write_eof()
        await quiet(server, agent)
        for _ in range(3):
            far.transport.resume_reading()
            far.transport.pause_reading()
        far.transport.resume_reading()
        await far.saw("eof")
        far.transport.pause_reading()
        far.transport.resume_reading()
        await quiet(server, agent)
        assert far.calls == ["made", "eof"]
        assert bytes(far.received) == b"z"


async def test_a_half_close_without_data_is_told_to_a_reader_that_pauses_before_the_end() -> None:
    far = [Recorder(), Recorder()]
    async with tower() as made:
        server, agent = await made.pair(accepting(*far))
        for each in far:
            stream = await server.open("kubernetes", Recorder())
            each.transport.pause_reading()
            stream.write_eof()
            await quiet(server, agent)
            assert each.calls == ["made"]
        far[0].transport.resume_reading()
        await far[0].saw("eof")
        far[1].transport.write_eof()
        await far[1].saw("lost")
        assert far[1].calls == ["made", "eof", "lost"]
        assert far[1].error is None


async def test_who_has_nothing_to_say_after_the_peers_end_is_closed_by_it() -> None:
    class Leaves(Recorder):
        def eof_received(self) -> bool:
            super().eof_received()
            return False

    far, caller = Leaves(), Recorder()
    async with tower() as made:
        server, agent = await made.pair(accepting(far))
        stream = await server.open("kubernetes", caller)
        stream.write(b"the end")
        stream.write_eof()
        await far.saw("lost")
        await caller.saw("lost")
        assert (far.calls, caller.calls) == (["made", "eof", "lost"], ["made", "eof", "lost"])
        assert far.error is caller.error is None
        await quiet(server, agent)
        assert server.stream_count == agent.stream_count == 0


async def test_who_pauses_as_it_accepts_gets_nothing_until_it_resumes() -> None:
    class Pauses(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.pause_reading()

    far, early = Pauses(), Recorder()
    async with tower() as made:
        server, agent = await made.pair(accepting(far))
        stream = server.start_open("kubernetes", early)
        stream.write(b"with the open")
        await far.saw("made")
        stream.write(b", and after")
        await quiet(server, agent)
        assert bytes(far.received) == b""
        far.transport.resume_reading()
        assert await far.bytes(24) == b"with the open, and after"


async def test_closing_while_both_wait_for_each_other_ends() -> None:
    """The far end writes before it reads; this end closes with unread bytes and unsent ones."""
    limits = Limits(initial_credit=16 * KIB, max_credit=16 * KIB, send_high=8 * KIB, send_low=4 * KIB)

    class WritesFirst(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.pause_reading()
            transport.write(b"w" * 60 * KIB)

        def resume_writing(self) -> None:
            super().resume_writing()
            self.transport.resume_reading()

    far, caller = WritesFirst(), Recorder()
    async with tower(limits=limits) as made:
        server, agent = await made.pair(accepting(far), limits=limits)
        stream = await server.open("kubernetes", caller)
        stream.pause_reading()
        await quiet(server, agent)
        stream.write(b"q" * 40 * KIB)
        stream.close()
        await caller.saw("lost")
        await far.saw("lost")
        assert bytes(far.received) == b"q" * 40 * KIB
        await quiet(server, agent)
        assert server.session.budget.used == agent.session.budget.used == 0


async def test_a_protocol_that_fails_loses_its_own_stream_only(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(Recorder):
        def data_received(self, data: bytes) -> None:
            raise RuntimeError("broken protocol")

    class FailsHeld(Fails):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.pause_reading()
            asyncio.get_running_loop().call_later(0.02, transport.resume_reading)

    class FailsAtTheEnd(Recorder):
        def eof_received(self) -> bool:
            raise RuntimeError("broken protocol")

    async with tower() as made:
        broken = [Fails(), FailsHeld(), FailsAtTheEnd()]
        server, agent = await made.pair(accepting(Echo(), *broken))
        steady = Recorder()
        good = await server.open("kubernetes", steady)
        for one in broken:
            caller = Recorder()
            stream = await server.open("kubernetes", caller)
            stream.write(b"break")
            stream.write_eof()
            await caller.saw("lost")
            assert isinstance(caller.error, StreamReset)
            assert caller.error.code is Code.INTERNAL
            assert "broken" not in caller.error.text, "the log of that end says more, not the wire"
            await one.saw("lost")
        good.write(b"still here")
        assert await steady.bytes(10) == b"still here"
        await quiet(server, agent)
        assert agent.stream_count == 1
        assert len([record for record in caplog.records if "the protocol failed" in record.message]) == 3


async def test_what_is_written_is_what_it_was_then_however_the_writer_uses_its_buffer_again() -> None:
    far, buffer = Recorder(), bytearray(b"first")
    async with tower() as made:
        server, _agent = await made.pair(accepting(far))
        stream = await server.open("kubernetes", Recorder())
        stream.write(memoryview(buffer))
        buffer[:] = b"later"
        stream.write(buffer)
        buffer[:] = b"never"
        assert await far.bytes(10) == b"firstlater"


async def test_what_comes_in_the_turn_of_a_resume_stays_behind_what_was_held() -> None:
    far = Recorder()

    class Resumes(Recorder):
        def data_received(self, data: bytes) -> None:
            far.transport.resume_reading()

    async with tower() as made:
        server, agent = await made.pair(accepting(Resumes(), far))
        go, stream = [await server.open("kubernetes", Recorder()) for _ in range(2)]
        far.transport.pause_reading()
        stream.write(b"held, ")
        await quiet(server, agent)
        go.write(b"go")
        stream.write(b"and what follows")
        assert await far.bytes(22) == b"held, and what follows"


async def test_what_a_reader_takes_at_once_of_several_frames_comes_once_and_in_its_place() -> None:
    class Takes(Recorder):
        often = 0

        def pieces_received(self, pieces: list[memoryview]) -> int:
            self.often += 1
            taken = b"".join(pieces)[: (self.often * 7919) % (sum(map(len, pieces)) + 1)]
            self.received += taken
            return len(taken)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if len(self.received) % 64 == 0:  # as one that is full
                self.transport.pause_reading()
                asyncio.get_running_loop().call_soon(self.transport.resume_reading)

    far, near, sent = Takes(), Recorder(), random.Random(7).randbytes(16 * MIB)
    async with tower() as made:
        server, _agent = await made.pair(accepting(far))
        stream = await server.open("kubernetes", near)
        for at in range(0, len(sent), 50_000):
            stream.write(sent[at : at + 50_000])
            if "pause" in near.calls[-1:]:
                await near.saw("resume")
                near.calls.clear()
        assert await far.bytes(len(sent)) == sent
        assert far.often > 3
        assert far.transport.bytes_in == len(sent)


# ---- flow -----------------------------------------------------------------------------------------------------------


async def test_a_stopped_reader_stops_its_own_stream_only() -> None:
    stopped, echo = Recorder(), Echo()
    async with tower() as made:
        server, agent = await made.pair(accepting(stopped, echo))
        blocked_caller, flowing_caller = Recorder(), Recorder()
        blocked = await server.open("kubernetes", blocked_caller)
        await stopped.saw("made")
        stopped.transport.pause_reading()
        for _ in range(8):
            blocked.write(b"b" * 64 * KIB)
        assert "pause" in blocked_caller.calls
        await quiet(server, agent)
        assert blocked.get_write_buffer_size() == 256 * KIB, "the rest waits here, no credit for it"
        assert agent.session.budget.used == 256 * KIB

        flowing = await server.open("kubernetes", flowing_caller)
        for _ in range(40):
            flowing.write(b"f" * 64 * KIB)
            await flowing_caller.bytes(len(flowing_caller.received) + 1)
        await flowing_caller.bytes(40 * 64 * KIB)
        assert stopped.calls == ["made"]

        stopped.transport.resume_reading()
        await blocked_caller.saw("resume")
        blocked.write_eof()
        await stopped.saw("eof")
        assert len(stopped.received) == blocked.bytes_out == stopped.transport.bytes_in


async def test_a_writer_that_waits_and_finishes_is_woken_before_the_end() -> None:
    far, caller = Recorder(), Recorder()
    async with tower() as made:
        server, agent = await made.pair(accepting(far))
        stream = await server.open("kubernetes", caller)
        await far.saw("made")
        far.transport.pause_reading()
        stream.write(b"x" * MIB)
        stream.write_eof()
        await quiet(server, agent)
        assert caller.calls == ["made", "pause"]
        far.transport.resume_reading()
        await caller.saw("resume")
        await far.saw("eof")
        assert len(far.received) == MIB


async def test_a_reader_that_leaves_wakes_a_writer_that_waits() -> None:
    """The far end closes: nobody reads what waits here, so the writer goes on into the void and may read the rest."""
    far, caller = Recorder(), Recorder()
    async with tower() as made:
        server, agent = await made.pair(accepting(far))
        stream = await server.open("kubernetes", caller)
        await far.saw("made")
        far.transport.pause_reading()
        stream.pause_reading()
        stream.write(b"x" * MIB)
        await quiet(server, agent)
        far.transport.write(b"last words")
        far.transport.close()
        await caller.saw("resume")
        stream.resume_reading()
        await caller.saw("lost")
        assert bytes(caller.received) == b"last words"
        assert caller.error is None


async def test_many_streams_at_once_each_keep_their_bytes() -> None:
    async with tower() as made:
        callers = [Recorder() for _ in range(200)]
        server, agent = await made.pair(accepting(*(Echo() for _ in callers)))
        for number, caller in enumerate(callers):
            stream = server.start_open("kubernetes", caller)
            stream.write(bytes((number,)) * (number * 37 + 1))
            stream.write_eof()
        for number, caller in enumerate(callers):
            await caller.saw("lost")
            assert bytes(caller.received) == bytes((number,)) * (number * 37 + 1)
        await quiet(server, agent)
        assert server.session.budget.used == agent.session.budget.used == 0
