"""A caller's connection from one server to the other: both ends over real TLS."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from certs.ca import Authority
from protocol.constants import Code
from protocol.errors import StreamRefused, TunnelLost
from tests.tower_server.replicas.kit import Caller, End, Host, certificate, serving
from tests.waiting import PATIENCE, until
from tower_server.replicas import passing as module
from tower_server.replicas.wire import Passing

pytestmark = pytest.mark.asyncio


async def test_bytes_go_both_ways_and_either_half_ends_by_itself():
    host = Host()
    async with serving(host) as port:
        near = End()
        stream = Caller(port).open(near)
        stream.write(b"early ")
        await until(lambda: near.accepted)
        assert host.tunnel.opened == [("kubernetes", "192.0.2.1:5", "c-1")], "the member hears of the caller"
        stream.write(b"late")
        (far,) = host.tunnel.far
        await until(lambda: far.data == b"early late")
        stream.write_eof()
        await until(lambda: far.eof)
        far.transport.write(b"answer")
        far.transport.write_eof()
        await until(lambda: near.over)
        assert (bytes(near.data), near.eof, near.error) == (b"answer", True, None)
        assert (stream.bytes_out, stream.bytes_in) == (10, 6)


async def test_an_end_that_came_before_the_connection_stood_is_not_lost():
    host = Host()
    async with serving(host) as port:
        near = End()
        stream = Caller(port).open(near)
        stream.write(b"all")
        stream.write_eof()
        await until(lambda: host.tunnel.far and host.tunnel.far[0].eof)
        assert host.tunnel.far[0].data == b"all"
        stream.reset(Code.CANCELLED, "")
        await until(lambda: near.over)


async def test_a_reader_that_stops_stops_the_member_and_nothing_piles_up():
    host, moved = Host(), 0
    async with serving(host) as port:
        near = End()
        stream = Caller(port).open(near)
        await until(lambda: near.accepted)
        stream.pause_reading()
        (far,) = host.tunnel.far
        while not far.full:
            far.transport.write(bytes(65536))
            moved += 65536
            assert moved < 64 * 2**20, "nobody has told the member to stop"
            await asyncio.sleep(0)
        stream.resume_reading()
        await until(lambda: len(near.data) == moved)
        assert not far.full
        stream.reset(Code.CANCELLED, "")


async def test_a_member_that_does_not_read_stops_the_caller():
    host, moved = Host(), 0
    async with serving(host) as port:
        near = End()
        stream = Caller(port).open(near)
        await until(lambda: near.accepted)
        (far,) = host.tunnel.far
        far.transport.pause_reading()
        while not near.full:
            stream.write(bytes(65536))
            moved += 65536
            assert moved < 64 * 2**20, "nobody has told the caller to stop"
            await asyncio.sleep(0)
        far.transport.resume_reading()
        await until(lambda: len(far.data) == moved)
        stream.reset(Code.CANCELLED, "")


async def test_a_refusal_comes_with_its_code():
    host = Host()
    host.tunnel.refusal = StreamRefused(Code.BUDGET, "no memory is left")
    async with serving(host) as port:
        near = End()
        Caller(port).open(near)
        await until(lambda: near.over)
        assert isinstance(near.error, StreamRefused)
        assert (near.error.code, near.error.text) == (Code.BUDGET, "no memory is left")
        assert not near.accepted


async def test_a_caller_is_given_back_where_its_tunnel_stalls_and_another_does_not(monkeypatch):
    monkeypatch.setattr("protocol.defaults.STALL_AFTER", 0.02)
    host = Host()
    host.tunnel.silent, host.hold = True, PATIENCE
    async with serving(host) as port:
        near, raw = End(), End()
        Caller(port).open(near)
        Caller(port).open(raw, Passing("edge", "db", "192.0.2.1:6", "c-2")).write(b"hello")
        await until(lambda: len(host.tunnel.far) == 2)
        assert not near.over, "there is no better tunnel yet"
        host.better = True
        await until(lambda: near.over)
        assert (near.error.code, near.error.text) == (Code.TUNNEL_LOST, "the tunnel stalls")
        far = next(far for far in host.tunnel.far if far.data == b"hello")
        assert not raw.over, "a raw service has heard its caller: nobody else may"
        far.transport.close()
        await until(lambda: raw.over)


async def test_a_caller_of_a_silent_agent_hears_so_after_the_hold_and_the_next_at_once(monkeypatch):
    monkeypatch.setattr("protocol.defaults.STALL_AFTER", 0.02)
    host = Host()
    host.tunnel.silent = host.tunnel.stalled = True
    async with serving(host) as port:
        first, next_one = End(), End()
        Caller(port).open(first)
        await until(lambda: first.over)
        assert first.error.code == Code.DEAD_PEER
        assert re.fullmatch(r"its agent has not answered for \d+\.\d s", first.error.text)
        Caller(port).open(next_one)
        await until(lambda: next_one.over)
        assert (next_one.error.code, next_one.error.text) == (Code.DEAD_PEER, "its agent is silent still")
        assert len(host.tunnel.far) == 1, "nothing was opened for it"


async def test_a_cut_is_no_end():
    host = Host()
    async with serving(host) as port:
        near, other = End(), End()
        caller = Caller(port)
        caller.open(near)
        gone = caller.open(other, Passing("edge", "kubernetes", "192.0.2.1:6", "c-2"))
        await until(lambda: near.accepted and other.accepted)
        by_id = {opened[2]: far for opened, far in zip(host.tunnel.opened, host.tunnel.far, strict=True)}
        by_id["c-1"].transport.reset(Code.INTERNAL, "the member fell over")
        await until(lambda: near.over)
        assert isinstance(near.error, TunnelLost)
        assert not near.eof
        gone.reset(Code.CANCELLED, "the caller is gone")
        await until(lambda: by_id["c-2"].over)
        assert by_id["c-2"].error is not None


async def test_a_server_that_is_not_there_is_told_apart_at_once():
    async with serving(Host()) as port:
        caller = Caller(port)
    near = End()
    caller.open(near)
    await until(lambda: near.over)
    assert isinstance(near.error, TunnelLost)
    assert "server owner cannot be reached" in near.error.text


async def test_a_server_of_another_host_or_name_gets_nothing_of_the_caller():
    stranger = Authority.create("hq", at=time.time())
    host = Host()
    async with serving(host) as port:
        for caller in (Caller(port, mine=certificate("other", stranger)), Caller(port, name="somebody")):
            near = End()
            caller.open(near).write(b"secret")
            await until(lambda near=near: near.over)
            assert isinstance(near.error, TunnelLost)
        assert not host.tunnel.opened


async def test_an_owner_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(module.defaults, "OPEN_DEADLINE", 0.2)
    host = Host()
    host.tunnel.silent = True
    async with serving(host) as port:
        near = End()
        Caller(port).open(near)
        await until(lambda: near.over)
        assert "no answer of server owner in time" in near.error.text
        await until(lambda: host.tunnel.far[0].over)
