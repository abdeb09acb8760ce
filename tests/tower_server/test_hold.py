"""Callers that find no tunnel: held while one may come back, answered at once when not."""

import asyncio
import time

import pytest

from daemon.metrics import ServerMetrics
from tests.tower_server.kit import (
    Agent,
    call,
    joined,
    raw,
    running,
)
from tests.waiting import until
from tower_server.hold import Hold

pytestmark = pytest.mark.asyncio


async def test_what_else_is_lost_while_callers_wait_is_the_same_outage():
    """Tunnels that end one after the other must not leave two timers, the older of which cuts a later hold short."""
    metrics = ServerMetrics(version="0")
    hold, ends = Hold(seconds=60, waiters=4, window=40, metrics=metrics.cluster("edge-1")), []
    hold.lost()
    assert hold.wait("first", ends.append)
    timer = hold._timer
    hold.lost()
    assert hold.wait("second", ends.append)
    assert hold._timer is timer
    hold.release()
    assert ends == [True, True]
    hold.lost()
    assert hold.wait("third", ends.append), "another outage, another hold"
    assert hold._timer is not timer
    assert hold.wait("fourth", ends.append)
    hold.leave("fourth")
    hold.close()
    assert ends == [True, True, False]
    text = metrics.render().decode()
    for result, count in (("tunnel", 2.0), ("in_vain", 1.0), ("left", 1.0)):
        assert f'tower_caller_hold_duration_seconds_count{{result="{result}"}} {count}' in text


async def test_a_return_is_likely_for_as_long_as_tunnels_wait_for_a_link(tmp_path):
    async with running(tmp_path, liveness={"dead_after": 10.0, "resume_window": 49.0}) as server:
        await server.add("edge-1")
        hold = server.member("edge-1").hold
        hold.lost()
        hold._lost_at -= 48.0
        assert hold.return_likely
        hold._lost_at -= 1.0
        assert not hold.return_likely


async def test_a_dead_member_is_answered_at_once_with_cause_and_without_retry(tmp_path):
    async with running(tmp_path, callers={"hold": "60s"}) as server:
        await server.add("edge-1")
        began = time.monotonic()
        answer = await call(server, "edge-1")
        assert time.monotonic() - began < 30, "nothing of the hold"
        document = answer.json()
        assert (answer.status, document["reason"]) == (503, "ServiceUnavailable")
        assert "TWR200" in document["message"]
        assert "has ever connected" in document["message"]
        assert "retry-after" not in answer.headers


async def test_a_caller_is_held_until_the_tunnel_is_back(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await agent.close()
        await until(lambda: not server.member("edge-1").tunnels)
        waiting = asyncio.ensure_future(call(server, "edge-1"))
        port = server.services.clusters.ports.of("edge-1")[0]
        await until(lambda: port.connections)
        again = Agent(server, agent.identity, respond=lambda _head: (200, b"back"))
        await again.connect()
        assert (await waiting).body == b"back"
        await again.close()


@pytest.mark.slow
async def test_a_hold_in_vain_ends_in_time_and_those_after_it_do_not_wait(tmp_path, monkeypatch):
    held: list[bool] = []
    wait = Hold.wait
    monkeypatch.setattr(Hold, "wait", lambda *args: held.append(wait(*args)) or held[-1])
    async with running(tmp_path, callers={"hold": "1s"}) as server, joined(server, "edge-1") as agent:
        await agent.close()
        await until(lambda: not server.member("edge-1").tunnels)
        began = time.monotonic()
        answers = await asyncio.gather(*(call(server, "edge-1") for _ in range(3)))
        assert 0.9 < time.monotonic() - began < 20.0
        assert held == [True] * 3
        for answer in answers:
            assert answer.status == 503
            assert "TWR201" in answer.json()["message"]
            assert "the agent stops" in answer.json()["message"]
        answer = await call(server, "edge-1")
        assert held == [True] * 3 + [False]
        assert "retry-after" not in answer.headers


@pytest.mark.slow
async def test_more_callers_than_may_wait_are_told_to_come_back(tmp_path):
    settings = {"callers": {"hold": "1s", "hold_waiters": 1}}
    async with running(tmp_path, **settings) as server, joined(server, "edge-1") as agent:
        await agent.close()
        await until(lambda: not server.member("edge-1").tunnels)
        first = asyncio.ensure_future(call(server, "edge-1"))
        await until(lambda: server.member("edge-1").hold.full)
        answer = await call(server, "edge-1")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "too many callers wait" in answer.json()["message"]
        assert (await first).status == 503


async def test_a_held_caller_that_leaves_is_forgotten(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        await agent.close()
        await until(lambda: not server.member("edge-1").tunnels)
        port = server.services.clusters.ports.of("edge-1")[0]
        async with raw(server, "edge-1"):
            await until(lambda: port.connections)
        await until(lambda: not port.connections)
