"""One server that follows another: what it learns, and how soon it notices that nobody is there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import structlog

from protocol.constants import Code
from protocol.errors import TunnelLost
from tests.tower_server.replicas.kit import CONNECTED, Caller, End, Host, certificate, peer, serving
from tests.waiting import until
from tower_server.replicas import link as module
from tower_server.replicas.link import CUT, LEFT, Link
from tower_server.replicas.wire import Held

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def following(link: Link) -> AsyncIterator[Link]:
    task = asyncio.create_task(link.run())
    try:
        yield link
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_it_knows_what_the_other_holds_while_the_other_is_there():
    host, heard = Host(), []
    async with serving(host) as port:
        link = Link(peer(port), certificate("other"), lambda _link, clusters, why: heard.append((clusters, why)))
        async with following(link):
            await until(lambda: link.serving)
            assert link.holds == host.said
            host.said = {"far": Held(1, CONNECTED, {})}
            port.tell()
            await until(lambda: set(link.holds) == {"far"})
            host.ready = False
            port.tell()
            await until(lambda: not link.serving)
            host.ready = True
            port.tell()
            await until(lambda: link.serving)
            heard.clear()
            port.stop()
            await until(lambda: not link.up)
            assert link.holds == {}
            assert heard[0][0] == {"far"}


async def test_one_that_says_nothing_for_a_while_holds_nothing(monkeypatch):
    monkeypatch.setattr(module.defaults, "REPLICA_DEAD_AFTER", 0.2)
    heard = []
    async with serving(Host()) as port:
        link = Link(peer(port), certificate("other"), lambda _link, clusters, why: heard.append((clusters, why)))
        with structlog.testing.capture_logs() as lines:
            async with following(link):
                await until(lambda: link.up)
                await until(lambda: not link.up)
        assert ({"edge"}, "nothing heard from it for 0.2 s") in heard
    (down, *_) = [each for each in lines if each["event"] == "replica-down"]
    assert (down["code"], down["replica"]) == ("TWR118", "owner")


async def test_one_whose_clock_is_another_is_not_heard_of_and_says_that():
    async with serving(Host(), ahead=3600.0) as port:
        link = Link(peer(port), certificate("other"), lambda _link, _clusters, _why: None)
        assert link.why == "it has not been reached yet"
        async with following(link):
            await until(lambda: "certificate is not yet valid; compare the clocks" in link.why)
            assert not link.up


async def test_one_that_comes_back_is_found_again():
    host = Host()
    async with serving(host) as port:
        link = Link(peer(port), certificate("other"), lambda _link, _clusters, _why: None)
        async with following(link):
            await until(lambda: link.up)
            for follower in list(port.followers):
                follower.transport.abort()
            await until(lambda: not link.up)
            await until(lambda: link.up)


@pytest.mark.slow
async def test_it_tells_a_process_that_is_gone_from_one_that_is_merely_not_heard(monkeypatch):
    monkeypatch.setattr(module.defaults, "REPLICA_DEAD_AFTER", 0.2)
    async with serving(Host()) as port:
        link = Link(peer(port), certificate("other"), lambda _link, _clusters, _why: None)
        async with following(link):
            await until(lambda: link.up)
            await until(lambda: not link.up)  # it beats no more, and listens
            assert (link.was_up, link.refused) == (True, False)
            port.stop()
            await until(lambda: link.refused)


async def test_one_that_is_somebody_else_is_not_believed():
    heard = []
    async with serving(Host()) as port:
        link = Link(peer(port, "somebody"), certificate("other"), lambda _link, _clusters, why: heard.append(why))
        async with following(link):
            await until(lambda: heard)
        assert not link.up
        assert "called as somebody is owner" in heard[0]


async def test_a_line_that_is_too_long_or_no_line_ends_the_link(monkeypatch):
    monkeypatch.setattr(module, "LINE_LIMIT", 100)
    host, heard = Host(), []
    host.said = {"edge": Held(1, CONNECTED, {"long": "x" * 1000})}
    async with serving(host) as port:
        link = Link(peer(port), certificate("other"), lambda _link, _clusters, why: heard.append(why))
        async with following(link):
            await until(lambda: heard)
        assert "above 100 bytes" in heard[0]


async def test_a_connection_that_waits_for_an_answer_is_given_back_when_the_link_goes_down():
    host = Host()
    async with serving(host) as port:
        caller = Caller(port)
        async with following(caller.link):
            await until(lambda: caller.link.up)
            runs, waits = End(), End()
            caller.open(runs)
            await until(lambda: runs.accepted)
            host.tunnel.silent = True
            caller.open(waits)
            await until(lambda: len(host.tunnel.far) == 2)
            caller.link.failed()
            await until(lambda: waits.over)
            assert isinstance(waits.error, TunnelLost)
            assert not runs.over, "the other may be merely slow"
            await until(lambda: caller.link.up)
            runs.transport.reset(Code.CANCELLED, "")


async def test_one_that_is_not_heard_of_again_loses_what_ran_over_it(monkeypatch):
    monkeypatch.setattr(module.defaults, "RESUME_WINDOW", 0.2)
    monkeypatch.setattr(module, "RETRY_MAX", 30.0)
    async with serving(Host()) as port:
        caller = Caller(port)
        async with following(caller.link):
            await until(lambda: caller.link.up)
            near = End()
            caller.open(near)
            await until(lambda: near.accepted)
            caller.link.peer = peer(port, "somebody")  # from now on nobody of that name answers
            caller.link.failed()
            await until(lambda: near.over)
            assert near.error.code is Code.DEAD_PEER


async def test_what_is_lost_there_and_what_somebody_meant_to_end_are_told_apart():
    heard, host = [], Host()
    async with serving(host) as port:
        link = Link(peer(port), certificate("other"), lambda _link, clusters, why: heard.append((clusters, why)))
        async with following(link):
            for meant, why in ((False, CUT), (True, LEFT)):
                host.said, host.meant = {"edge": Held(1, CONNECTED, {})}, meant
                port.tell()
                await until(lambda: "edge" in link.holds and link.serving)
                host.said = {}
                port.tell()
                await until(lambda why=why: ({"edge"}, why) in heard)
