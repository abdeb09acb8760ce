"""Two ends of a tunnel over a real socket: opening, refusing, half-closing, back-pressure, ends of every kind."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from time import monotonic
from typing import Any

import pytest

from protocol.aio.stream import IncomingStream
from protocol.constants import CONTROL_SERVICE, Code
from protocol.errors import RemoteProtocolError, StreamRefused, TunnelLost
from protocol.events import GoingAway
from protocol.flow import Limits
from tests.protocol.aio.tunnels import PATIENCE, Echo, Recorder, accepting, quiet, tower

pytestmark = pytest.mark.asyncio


# ---- opening --------------------------------------------------------------------------------------------------------


async def test_a_stream_carries_bytes_both_ways_and_half_closes() -> None:
    echo, caller = Echo(), Recorder()
    async with tower() as made:
        server, agent = await made.pair(accepting(echo))
        stream = await server.open("kubernetes", caller, caller="192.0.2.7:4711", connection_id="c-1")
        (listed,) = server.streams()
        assert (listed.service, listed.caller, listed.connection_id) == ("kubernetes", "192.0.2.7:4711", "c-1")
        stream.write(b"hello")
        stream.write_eof()
        await caller.saw("lost")
        assert bytes(caller.received) == b"hello"
        assert caller.calls == ["made", "eof", "lost"]
        assert caller.error is None
        assert echo.transport.get_extra_info("caller") == "192.0.2.7:4711"
        assert echo.transport.get_extra_info("connection_id") == "c-1"
        await quiet(server, agent)
        assert server.stream_count == agent.stream_count == 0
        assert server.streams() == agent.streams() == []
        assert server.session.budget.used == agent.session.budget.used == 0


async def test_over_tls_with_a_zero_mask(contexts: Any) -> None:
    caller = Recorder()
    async with tower(*contexts) as made:
        server, _ = await made.pair(accepting(Echo()))
        stream = await server.open("kubernetes", caller)
        payload = bytes(range(256)) * 4096
        stream.write(payload)
        assert await caller.bytes(len(payload)) == payload


async def test_data_that_follows_the_open_at_once_is_there_when_it_is_accepted() -> None:
    waiting: asyncio.Queue[IncomingStream] = asyncio.Queue()
    async with tower() as made:
        server, _ = await made.pair(waiting.put_nowait)
        caller, far = Recorder(), Recorder()
        stream = server.start_open("kubernetes", caller)
        stream.write(b"early")
        stream.write_eof()
        incoming = await waiting.get()
        await server.ping()
        incoming.accept(far)
        await far.saw("eof")
        assert bytes(far.received) == b"early"
        assert far.calls == ["made", "eof"]


async def test_opened_written_and_closed_at_once_still_arrives() -> None:
    waiting: asyncio.Queue[IncomingStream] = asyncio.Queue()
    async with tower() as made:
        server, agent = await made.pair(waiting.put_nowait)
        caller, far = Recorder(), Recorder()
        stream = server.start_open("kubernetes", caller)
        stream.write(b"fire and forget")
        stream.close()
        incoming = await waiting.get()
        await quiet(server, agent)
        assert not incoming.cancelled
        incoming.accept(far)
        await far.saw("lost")
        assert bytes(far.received) == b"fire and forget"
        assert far.calls == ["made", "eof", "lost"]
        assert far.error is None


async def test_a_refusal_carries_code_and_text() -> None:
    async with tower() as made:
        server, _ = await made.pair(lambda incoming: incoming.refuse(Code.UNKNOWN_SERVICE, "no service 'redis' here"))
        caller = Recorder()
        with pytest.raises(StreamRefused, match="no service 'redis' here") as refused:
            await server.open("redis", caller)
        assert refused.value.code is Code.UNKNOWN_SERVICE
        assert caller.calls == [], "the protocol never saw a stream"
        server.start_open("redis", caller)
        await caller.saw("lost")
        assert isinstance(caller.error, StreamRefused)


async def test_the_server_takes_no_streams() -> None:
    async with tower() as made:
        _, agent = await made.pair()
        with pytest.raises(StreamRefused, match="accepts no streams") as refused:
            await agent.open("kubernetes", Recorder())
        assert refused.value.code is Code.FORBIDDEN


async def test_a_name_that_cannot_be_sent_refuses_one_open_and_harms_nothing() -> None:
    async with tower() as made:
        server, agent = await made.pair(accepting(Echo()))
        for name in ("x" * 300, "a\nb"):
            with pytest.raises(StreamRefused, match="a name"):
                await server.open(name, Recorder())
        await server.open("kubernetes", Recorder())
        assert agent.closed is None


async def test_an_open_that_nobody_answers_times_out_and_is_cancelled() -> None:
    waiting: asyncio.Queue[IncomingStream] = asyncio.Queue()
    async with tower() as made:
        server, agent = await made.pair(waiting.put_nowait)
        with pytest.raises(TimeoutError):
            await server.open("kubernetes", Recorder(), deadline=0.05)
        incoming = await waiting.get()
        await quiet(server, agent)
        assert incoming.cancelled
        assert agent.stream_count == server.stream_count == 0
        late = Recorder()
        incoming.accept(late)
        await late.saw("lost")
        assert late.calls == ["made", "lost"]
        incoming.refuse(Code.INTERNAL, "also harmless")
        await quiet(server, agent)


async def test_an_open_that_is_cancelled_before_it_is_seen_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    far, refused = Recorder(), 0
    seen = []

    def on_stream(incoming: IncomingStream) -> None:
        nonlocal refused
        seen.append(incoming)
        if len(seen) == 1:
            incoming.accept(far)
        else:
            incoming.refuse(Code.INTERNAL, "no")

    async with tower() as made:
        server, agent = await made.pair(on_stream)
        for _ in range(2):
            server.start_open("kubernetes", Recorder()).abort()
        await quiet(server, agent)
        assert len(seen) == 2
        await far.saw("lost")
        assert agent.stream_count == 0
        assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_an_answerer_that_fails_is_a_refusal_for_the_asker() -> None:
    def on_stream(incoming: IncomingStream) -> None:
        raise RuntimeError("broken handler")

    async with tower() as made:
        server, agent = await made.pair(on_stream)
        with pytest.raises(StreamRefused, match="internal error") as refused:
            await server.open("kubernetes", Recorder())
        assert refused.value.code is Code.INTERNAL
        assert agent.closed is None


# ---- the tunnel's end -----------------------------------------------------------------------------------------------


async def test_an_asker_that_fails_at_once_leaves_no_stream_behind() -> None:
    class Fails(Recorder):
        def connection_made(self, transport: Any) -> None:
            raise RuntimeError("broken protocol")

    far = Recorder()
    async with tower() as made:
        server, agent = await made.pair(accepting(far))
        with pytest.raises(RuntimeError, match="broken protocol"):
            server.start_open("kubernetes", Fails())
        await quiet(server, agent)
        assert server.stream_count == agent.stream_count == 0
        assert server.streams() == []


async def test_a_ping_measures() -> None:
    async with tower() as made:
        server, _ = await made.pair()
        seconds = await server.ping()
        assert 0 < seconds < PATIENCE
        assert server.rtt is not None
        assert server.rtt <= seconds


async def test_closing_tells_the_peer_and_every_stream_why() -> None:
    far, caller, ends = Recorder(), Recorder(), []
    async with tower() as made:
        server, agent = await made.pair(accepting(far))
        agent.on_closed = lambda _, closed: ends.append(closed)
        await server.open("kubernetes", caller)
        never = asyncio.ensure_future(server.open("kubernetes", Recorder()))
        await far.saw("made")
        await asyncio.sleep(0)
        server.close(Code.REVOKED, "revoked by an operator")
        server.close(Code.INTERNAL, "twice")
        for one in (far, caller):
            await one.saw("lost")
            assert isinstance(one.error, TunnelLost)
            assert (one.error.code, one.error.text) == (Code.REVOKED, "revoked by an operator")
        with pytest.raises(TunnelLost, match="revoked by an operator"):
            await never
        closed = await agent.wait_closed()
        assert (closed.code, closed.by_peer) == (Code.REVOKED, True)
        assert ends == [closed]
        assert (await server.wait_closed()).by_peer is False
        with pytest.raises(StreamRefused, match="the tunnel is over"):
            await server.open("kubernetes", Recorder())
        with pytest.raises(TunnelLost):
            await server.ping()


async def test_a_cut_link_loses_every_stream_with_a_reason() -> None:
    caller = Recorder()
    async with tower() as made:
        server, agent = await made.pair(accepting(Echo()))
        await server.open("kubernetes", caller)
        ping = asyncio.ensure_future(server.ping())
        await asyncio.sleep(0)
        agent._link.abort("pulled the plug")
        await caller.saw("lost")
        assert isinstance(caller.error, TunnelLost)
        assert caller.error.code is Code.TUNNEL_LOST
        assert "connection" in caller.error.text
        assert (await agent.wait_closed()).text == "pulled the plug"
        with pytest.raises(TunnelLost):
            await ping


async def test_draining_refuses_new_streams_and_lets_old_ones_end() -> None:
    heard: list[GoingAway] = []
    caller = Recorder()
    async with tower() as made:
        server, agent = await made.pair(accepting(Echo()))
        agent.on_going_away = lambda _, event: heard.append(event)
        stream = await server.open("kubernetes", caller)
        server.drain(Code.SHUTDOWN, "restart", deadline=30.0, retry_after=0.5)
        await quiet(server, agent)
        assert heard == [GoingAway(Code.SHUTDOWN, "restart", 30.0, 0.5)]
        assert server.draining
        assert agent.draining
        with pytest.raises(StreamRefused) as refused:
            await server.open("kubernetes", Recorder())
        assert refused.value.code is Code.DRAINING
        stream.write(b"old")
        stream.write_eof()
        await caller.saw("lost")
        assert bytes(caller.received) == b"old"
        assert caller.error is None


async def test_a_peer_that_goes_silent_is_dead_at_the_deadline() -> None:
    limits = Limits(ping_interval=0.1, dead_after=0.4)
    caller = Recorder()
    async with tower(limits=limits) as made:
        server, agent = await made.pair(accepting(Echo()))
        await server.open("kubernetes", caller)
        agent._link.owner = Deaf()
        started = asyncio.get_running_loop().time()
        closed = await server.wait_closed()
        waited = asyncio.get_running_loop().time() - started
        assert closed.code is Code.DEAD_PEER
        assert "nothing heard from the peer for 0.4 s" in closed.text
        assert 0.2 < waited < PATIENCE
        await caller.saw("lost")
        agent.link_lost("the test ends")


async def test_a_tunnel_whose_peer_owes_an_answer_is_stalled_long_before_it_is_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("protocol.aio.tunnel.STALL_AFTER", 0.1)
    async with tower() as made:
        server, agent = await made.pair(accepting(Echo()))
        await server.open("kubernetes", Recorder())
        await server.ping()
        assert not server.stalled
        heard, agent._link.owner = agent._link.owner, Deaf()
        server.start_open("kubernetes", Recorder())
        async with asyncio.timeout(PATIENCE):
            while not server.stalled:
                await asyncio.sleep(0.01)
        assert server.closed is None
        assert server.buffered > 0
        async with asyncio.timeout(PATIENCE):
            while not server.silent:
                await asyncio.sleep(0.01)
        agent.session.ping(0.0)
        agent._schedule_flush()
        async with asyncio.timeout(PATIENCE):
            while server.silent:
                await asyncio.sleep(0.01)
        assert server.stalled, "something has come, though no answer: a slow, full link is like that"
        agent._link.owner = heard
        agent.link_lost("the test ends")


async def test_a_peer_that_is_far_does_not_stall_before_it_can_have_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.aio.tunnel.STALL_AFTER", 0.01)
    async with tower() as made:
        server, agent = await made.pair(accepting(Echo()))
        await quiet(server, agent)
        heard, agent._link.owner = agent._link.owner, Deaf()
        server.start_open("kubernetes", Recorder())
        async with asyncio.timeout(PATIENCE):
            while server.session.overdue(monotonic()) < 0.1:
                await asyncio.sleep(0.01)
        assert server.stalled
        server.session._liveness.rtt = 2 * PATIENCE  # as over a way that is full
        assert not server.stalled
        agent._link.owner = heard
        agent.link_lost("the test ends")


async def test_the_kernel_is_told_at_what_pace_bursts_may_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.flight.Flight.pace", 12_500_000.0)
    async with tower() as made:
        server, _agent = await made.pair(accepting(Echo()))
        await server.open("kubernetes", Recorder())
        sock = server._link._transport.get_extra_info("socket")
        assert int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 47, 8), sys.byteorder) == 12_500_000


class Deaf:
    """A frozen process: its socket takes bytes and nobody answers."""

    def link_received(self, data: memoryview) -> None: ...
    def link_writable(self) -> None: ...
    def link_lost(self, reason: str) -> None: ...


@pytest.mark.slow
async def test_an_idle_tunnel_lives_by_its_pings() -> None:
    limits = Limits(ping_interval=0.05, dead_after=2.0)
    async with tower(limits=limits) as made:
        server, agent = await made.pair(limits=limits)
        await asyncio.sleep(2.5)
        assert server.closed is None
        assert agent.closed is None


async def test_a_peer_that_breaks_the_control_stream_loses_the_tunnel(caplog: pytest.LogCaptureFixture) -> None:
    class Control(Recorder):
        def data_received(self, data: bytes) -> None:
            raise RemoteProtocolError(Code.TOO_LARGE, "a control line above the bound")

    async with tower() as made:
        server, agent = await made.pair(accepting(Control()))
        stream = await server.open(CONTROL_SERVICE, Recorder())
        stream.write(b"x")
        closed = await server.wait_closed()
        assert (closed.code, closed.text, closed.by_peer) == (Code.TOO_LARGE, "a control line above the bound", True)
        await agent.wait_closed()
    (said,) = (record for record in caplog.records if "control line" in record.getMessage())
    assert "the peer broke the protocol" in said.getMessage()
    assert (said.levelname, said.exc_info) == ("WARNING", None), "a peer's fault needs no traceback of this end"


async def test_what_arrived_is_acknowledged_in_time_although_nothing_else_is_said() -> None:
    limits = Limits(ping_interval=1000.0, dead_after=2000.0)
    async with tower(limits=limits) as made:
        server, agent = await made.pair(accepting(Recorder()), limits=limits)
        stream = await server.open("kubernetes", Recorder())
        await quiet(server, agent)
        stream.write(b"x")
        async with asyncio.timeout(PATIENCE / 2):  # a PING for its measure would be due after all of it
            while server.session.frames_acked < 2:
                await asyncio.sleep(0.01)
