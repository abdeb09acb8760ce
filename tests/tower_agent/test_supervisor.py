"""One host's link through refusals, restarts and drains, and next to another host's."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import time
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.backoff import Backoff
from protocol import defaults
from protocol.aio.hops import DialError
from protocol.aio.tunnel import Tunnel
from protocol.constants import Code
from protocol.errors import HandshakeRejected
from tests.tower_agent.caller import Caller
from tests.tower_agent.conftest import MakeMember
from tests.tower_agent.tower import Tower, new_tower, serving_tower
from tests.waiting import until
from tower_agent import supervisor as supervisor_module
from tower_agent.host import HostAgent
from tower_agent.trust import HostTrust

ADMIN = ("tower:east:admin", "tower:east:cluster-admins")


async def fault(agent: HostAgent, code: str) -> str:
    """The text of the state's fault, once it has this code."""
    await until(lambda: agent.state.fault is not None and agent.state.fault.code == code)
    return agent.state.fault.message


async def connected(agent: HostAgent) -> None:
    """The agent knows of its tunnel."""
    await until(lambda: agent.not_ready() is None)


@pytest.mark.asyncio
async def test_when_the_server_drains_the_next_tunnel_comes_first(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower)
        old = await tower.tunnel()
        caller = await Caller.open(old, tower.caller_context(tower.client(*ADMIN)))
        old.drain(Code.DRAINING, "an upgrade", deadline=20.0, retry_after=0.05)
        new = await tower.tunnel()
        assert old.closed is None
        assert (await caller.ask())[0] == 200
        assert agent.state.connected
        caller.close()
        closed = await asyncio.wait_for(old.wait_closed(), 30)
        assert (closed.code, closed.by_peer) == (Code.NONE, True)
        assert new.closed is None


@pytest.mark.asyncio
async def test_a_drain_ends_at_its_deadline(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        await member.agent(tower)
        old = await tower.tunnel()
        caller = await Caller.open(old, tower.caller_context(tower.client(*ADMIN)))
        old.drain(Code.DRAINING, "an upgrade", deadline=0.3, retry_after=0.0)
        closed = await asyncio.wait_for(old.wait_closed(), 30)
        assert (closed.code, closed.text, closed.by_peer) == (Code.DRAINING, "the time to drain is over", True)
        assert (await tower.tunnel()).closed is None
        caller.close()


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_server_that_goes_has_its_streams_ended_at_once_and_is_dialled_when_it_is_gone(
    make_member: MakeMember,
) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower)
        old = await tower.tunnel()
        caller = await Caller.open(old, tower.caller_context(tower.client(*ADMIN)))
        assert (await caller.ask())[0] == 200
        old.drain(Code.SHUTDOWN, "the server stops", deadline=60.0, retry_after=61.0)
        await asyncio.wait_for(caller.stream.lost, 30)  # nobody asked for the end of this connection but the drain
        assert old.closed is None
        assert len(tower.tunnels) == 1, "no other server to go to"
        old.close(Code.SHUTDOWN, "the server stops")
        closed = time.monotonic()
        assert "the server stops" in await fault(agent, "TWR113")
        await tower.tunnel()
        assert time.monotonic() - closed < 10.0
        await connected(agent)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_host_that_drains_what_it_has_just_welcomed_is_not_hammered(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        await member.agent(tower)
        began = time.monotonic()
        for _ in range(4):
            (await tower.tunnel()).drain(Code.DRAINING, "elsewhere", deadline=60.0, retry_after=0.0)
        assert time.monotonic() - began >= 3 * defaults.BACKOFF_MIN


@pytest.mark.asyncio
async def test_a_word_to_stay_away_does_not_hold_for_good(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever ends the outer TLS could say it too: 49 days of it are fewer bytes than a line of text."""
    monkeypatch.setattr(supervisor_module, "MAX_RETRY_AFTER", 0.1)
    monkeypatch.setattr(supervisor_module, "LASTED", 0.0)
    async with make_member() as member, serving_tower(new_tower()) as tower:
        await member.agent(tower)
        old = await tower.tunnel()
        old.drain(Code.SHUTDOWN, "the server stops", deadline=0.0, retry_after=4e6)
        old.close(Code.SHUTDOWN, "the server stops")
        assert (await tower.tunnel()).closed is None


@pytest.mark.asyncio
async def test_tunnels_that_drain_are_bounded_and_the_oldest_gives_way(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "MAX_DRAINING", 2)
    monkeypatch.setattr(supervisor_module, "LASTED", 0.0)
    async with make_member() as member, serving_tower(new_tower()) as tower:
        await member.agent(tower)
        callers = []
        for _ in range(3):
            tunnel = await tower.tunnel()
            callers.append(await Caller.open(tunnel, tower.caller_context(tower.client(*ADMIN))))
            tunnel.drain(Code.DRAINING, "elsewhere", deadline=3600.0, retry_after=0.0)
        first, *others = tower.tunnels[:3]
        closed = await asyncio.wait_for(first.wait_closed(), 30)
        assert (closed.code, closed.text) == (Code.DRAINING, "2 tunnels drain already, this one for longest")
        assert [each.closed for each in others] == [None, None]
        for caller in callers:
            caller.close()


@pytest.mark.asyncio
async def test_a_server_that_goes_right_after_it_welcomed_is_heard(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "LASTED", 0.0)
    tower = new_tower()
    taken = tower.on_tunnel

    def going_at_once(tunnel: Tunnel) -> None:
        taken(tunnel)
        if len(tower.tunnels) == 1:
            tunnel.drain(Code.DRAINING, "elsewhere", deadline=60.0, retry_after=0.0)

    tower.on_tunnel = going_at_once  # type: ignore[method-assign]
    async with make_member() as member, serving_tower(tower):
        await member.agent(tower)
        first = await tower.tunnel()
        assert (await tower.tunnel()) is not first
        assert (await asyncio.wait_for(first.wait_closed(), 30)).code is Code.NONE


@pytest.mark.slow
@pytest.mark.asyncio
async def test_an_idle_stream_of_a_drained_tunnel_ends_once_the_next_one_stands(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        await member.agent(tower)
        old = await tower.tunnel()
        caller = await Caller.open(old, tower.caller_context(tower.client(*ADMIN)))
        assert (await caller.ask())[0] == 200
        tower.refuse = HandshakeRejected(Code.BUSY, "not yet", retry_after=0.1)
        old.drain(Code.DRAINING, "an upgrade", deadline=60.0, retry_after=0.0)
        await asyncio.sleep(1.5)  # longer than it takes to close an idle connection
        assert not caller.stream.lost.done(), "there is nowhere to go yet"
        tower.refuse = None
        await tower.tunnel()
        await asyncio.wait_for(caller.stream.lost, 30)
        assert (await asyncio.wait_for(old.wait_closed(), 30)).code is Code.NONE


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_refusal_is_explained_and_its_retry_after_is_honoured(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        tower.refuse = HandshakeRejected(Code.BUSY, "too many handshakes", retry_after=0.6)
        agent = await member.agent(tower)
        text = await fault(agent, "TWR221")
        assert "too many handshakes" in text
        assert agent.not_ready() == f"TWR221: {text}"
        began = time.monotonic()
        tower.refuse = None
        await tower.tunnel()
        assert time.monotonic() - began > 0.3
        await connected(agent)


@pytest.mark.asyncio
async def test_a_revoked_agent_says_so(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower)
        tunnel = await tower.tunnel()
        tower.refuse = HandshakeRejected(Code.REVOKED, "the agent a1 was revoked")
        tunnel.close(Code.REVOKED, "the agent a1 was revoked")
        assert "revoked" in await fault(agent, "TWR209")


@pytest.mark.asyncio
async def test_a_server_that_returns_is_found_again(make_member: MakeMember) -> None:
    async with make_member() as member:
        tower = new_tower()
        async with serving_tower(tower):
            agent = await member.agent(tower)
            await tower.tunnel()
        assert f"127.0.0.1:{tower.port}" in await fault(agent, "TWR211")
        async with serving_tower(tower):
            await tower.tunnel()
            assert all(link.tunnel is None or link.tunnel.closed is None for link in agent.links)


@pytest.mark.asyncio
async def test_of_two_addresses_the_second_has_its_turn_when_the_first_is_no_tower(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lookup(_host: str, port: int, _deadline: float) -> list[tuple[int, tuple[str, int]]]:
        return [(socket.AF_INET, (address, port)) for address in ("127.0.0.2", "127.0.0.1")]

    async with make_member() as member, serving_tower(new_tower()) as tower:
        impostor = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.2", tower.port)
        try:
            agent = await member.agent(tower)
            first = await tower.tunnel()
            monkeypatch.setattr("protocol.aio.tcpdial._lookup", lookup)
            said: list[str] = []
            link = agent.links[0]
            monkeypatch.setattr(link, "_set", lambda state: said.append(state.fault.message) if state.fault else None)
            first.close(Code.INTERNAL, "dial again")
            await tower.tunnel()
            assert any("tls" in text and f"(at 127.0.0.2:{tower.port})" in text for text in said), said
        finally:
            impostor.close()
            await impostor.wait_closed()


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_host_that_one_link_has_reached_is_dialled_by_the_others_at_once(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    dial, silent = supervisor_module.dial, True

    async def behind_a_balancer(*args: Any, instance: str, **more: Any) -> Tunnel:
        if silent and instance.endswith(".1"):  # to a server that accepts the connection and says nothing
            raise DialError("handshake", "no answer within 10 s")
        return await dial(*args, instance=instance, **more)

    async with make_member() as member:
        tower = new_tower()
        async with serving_tower(tower):
            agent = await member.agent(tower, links=3)
            await until(lambda: all(link.state.connected for link in agent.links))
        monkeypatch.setattr(supervisor_module, "dial", behind_a_balancer)
        for link in agent.links[1:]:
            link._backoff = Backoff(random=lambda: 0.0, minimum=3600.0)  # one that waits for an hour from now on
        await until(lambda: all(link._backoff.failures for link in agent.links[1:]))
        silent = False
        async with serving_tower(tower), asyncio.timeout(20):
            while not all(link.state.connected for link in agent.links):
                await asyncio.sleep(0.01)


def cut(tunnel: Tunnel) -> None:
    assert tunnel._link is not None
    tunnel._link.abort("cut by the test")


@pytest.mark.asyncio
async def test_a_cut_link_is_replaced_and_the_streams_of_the_tunnel_go_on(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower)
        tunnel = await tower.tunnel()
        caller = await Caller.open(tunnel, tower.caller_context(tower.client(*ADMIN)))
        for resumed in (1, 2, 3):
            await connected(agent)
            cut(tunnel)
            assert tunnel.detached
            # Without a back-off, since streams get on: that would be a quarter of the window from the second cut on.
            assert (await asyncio.wait_for(caller.ask(), 0.9 * defaults.RESUME_WINDOW / 4))[0] == 200
            assert tunnel.resumes == resumed
            agent.links[0]._backoff = Backoff(random=lambda: 1.0, minimum=3600.0)
        assert tower.tunnels == [tunnel]
        await connected(agent)
        for series in (b'tower_agent_link_cuts_total{host="east"} 3.0', b'tower_agent_resumes_total{host="east"} 3.0'):
            assert series in member.metrics.render()
        caller.close()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("swallowed", "code"), [(True, "TWR222"), (False, "TWR201")], ids=["what-the-server-says-is-lost", "cut"]
)
async def test_a_link_on_which_nothing_comes_any_more_is_told_from_one_that_was_cut(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch, swallowed: bool, code: str
) -> None:
    said: list[str] = []
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower, liveness={"ping": "200ms", "dead_after": "1s"})
        tunnel = await tower.tunnel()
        await connected(agent)
        link = agent.links[0]
        monkeypatch.setattr(link, "_set", lambda state: said.append(state.fault.code) if state.fault else None)
        if swallowed:
            monkeypatch.setattr(tunnel._link, "write", lambda buffers: sum(map(len, buffers)))
        else:
            cut(tunnel)
        await until(lambda: said)
        assert said[0] == code
        await until(lambda: tunnel.resumes == 1)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_links_that_are_lost_as_soon_as_they_stand_are_dialled_for_once_at_a_time(
    make_member: MakeMember,
) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower)
        tunnel = await tower.tunnel()
        await connected(agent)
        mine = agent.links[0].tunnel
        assert mine is not None
        dialling: list[int] = []

        def lose_again(tunnel: Tunnel, _pause: float) -> None:
            dialling.append(sum(task.get_name() == f"resume {tunnel.id}" for task in asyncio.all_tasks()))
            if len(dialling) < 3:
                cut(tunnel)
                assert agent.not_ready() is not None

        mine.on_resumed = lose_again
        cut(tunnel)
        async with asyncio.timeout(20):
            while len(dialling) < 3:
                assert agent.not_ready() is not None or not mine.detached
                await asyncio.sleep(0.01)
        assert dialling == [1] * 3
        await connected(agent)
        assert tower.tunnels == [tunnel]


@pytest.mark.slow
@pytest.mark.asyncio
async def test_links_that_are_lost_as_soon_as_they_stand_are_dialled_for_ever_more_rarely(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "CARRIED", 3600.0)  # however slow this machine is
    monkeypatch.setattr(supervisor_module, "_moved", lambda _tunnel: 0)  # whatever the control stream says meanwhile
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower)
        tunnel = await tower.tunnel()
        await connected(agent)
        agent.links[0]._backoff = Backoff(random=lambda: 1.0, minimum=0.01)
        resumed: list[float] = []

        def hang_up(tunnel: Tunnel, _pause: float) -> None:
            resumed.append(time.monotonic())
            if len(resumed) < 6:
                asyncio.get_running_loop().call_later(0.01, cut, tunnel)

        tunnel.on_resumed = hang_up
        cut(tunnel)
        await until(lambda: len(resumed) >= 6)
        waits = [after - before for before, after in itertools.pairwise(resumed)]
        assert all(wait >= 0.01 * 2**number for number, wait in enumerate(waits, 1)), waits


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_host_that_another_link_reaches_while_a_dial_fails_is_dialled_again_at_once(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled, fail = [0], asyncio.Event()

    async def dial(*args: Any, **more: Any) -> Tunnel:
        dialled[0] += 1
        if dialled[0] == 1:
            await fail.wait()
            raise DialError("tcp", "a dead address")
        return await real(*args, **more)

    real = supervisor_module.dial
    monkeypatch.setattr(supervisor_module, "dial", dial)
    monkeypatch.setattr(supervisor_module, "Backoff", lambda random: Backoff(random=random, minimum=3600.0))
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower)
        await until(lambda: dialled[0])
        agent.links[0].host_reached()
        fail.set()
        await connected(agent)
        assert dialled == [2]


@pytest.mark.asyncio
async def test_a_tunnel_that_has_lost_its_link_before_anybody_holds_it_is_dialled_anew(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Tunnel] = []

    async def dial(*args: Any, **more: Any) -> Tunnel:
        made.append(await supervisor.dial(*args, **more))
        if len(made) == 1:
            cut(made[0])
        return made[-1]

    supervisor = SimpleNamespace(dial=supervisor_module.dial)
    monkeypatch.setattr(supervisor_module, "dial", dial)
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower)
        text = await fault(agent, "TWR201")
        assert "lost as soon as it stood" in text
        await connected(agent)
        assert made[0].closed is not None
        assert agent.links[0].tunnel is made[1]


@pytest.mark.asyncio
async def test_a_tunnel_does_not_go_on_where_somebody_in_between_could_look_inside(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = True
    monkeypatch.setattr(HostTrust, "ends_at_tower", lambda _trust, chain: private and bool(chain))
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower)
        tunnel = await tower.tunnel()
        await connected(agent)
        mine = agent.links[0].tunnel
        assert mine is not None
        private = False
        cut(tunnel)
        closed = await asyncio.wait_for(mine.wait_closed(), 30)
        assert closed.text == "it cannot go on over the new link: a new tunnel took its place"
        assert await tower.tunnel() is not tunnel
        await connected(agent)


@pytest.mark.asyncio
async def test_a_draining_tunnel_is_resumed_too(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        await member.agent(tower)
        old = await tower.tunnel()
        caller = await Caller.open(old, tower.caller_context(tower.client(*ADMIN)))
        old.drain(Code.DRAINING, "an upgrade", deadline=60.0, retry_after=60.1)
        cut(old)
        assert (await asyncio.wait_for(caller.ask(), 30))[0] == 200
        assert old.resumes == 1
        caller.close()


@pytest.mark.asyncio
async def test_a_server_that_does_not_know_the_tunnel_ends_its_streams_at_once_and_gets_a_new_one(
    make_member: MakeMember,
) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower)
        old = await tower.tunnel()
        await connected(agent)
        held = agent.links[0].tunnel
        assert held is not None
        tower.find = lambda _tunnel, _identity: None  # type: ignore[method-assign]
        cut(old)
        new = await tower.tunnel()
        assert new.id != old.id
        closed = await asyncio.wait_for(held.wait_closed(), 30)
        assert (closed.code, closed.by_peer) == (Code.UNKNOWN_TUNNEL, False)
        assert "this server has no such tunnel" in closed.text
        await connected(agent)


@pytest.mark.asyncio
async def test_hosts_have_separate_fates(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower("east")) as east:
        west = new_tower("west")
        async with serving_tower(west):
            lost = await member.agent(west)
            await west.tunnel()
            kept = await member.agent(east)
            tunnel = await east.tunnel()
        await fault(lost, "TWR211")
        assert kept.not_ready() is None
        caller = await Caller.open(tunnel, east.caller_context(east.client(*ADMIN)))
        assert (await caller.ask())[0] == 200
        caller.close()


@pytest.mark.asyncio
async def test_one_hosts_callers_are_strangers_to_another(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower("east")) as east:
        west: Tower = new_tower("west")
        await member.agent(east)
        tunnel = await east.tunnel()
        foreign = west.client("tower:west:admin", "tower:west:cluster-admins")
        caller = await Caller.open(tunnel, east.caller_context(foreign))  # TLS 1.3: the refusal comes after
        with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
            await caller.ask()
        assert member.apiserver.requests == []


@pytest.mark.asyncio
async def test_a_stopping_agent_says_why_and_finishes_what_runs(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower)
        tunnel = await tower.tunnel()
        await connected(agent)
        began = time.monotonic()
        await agent.drain("the agent is stopping")
        await agent.close("the agent is stopping")
        member.agents.clear()
        closed = await asyncio.wait_for(tunnel.wait_closed(), 30)
        assert (closed.code, closed.text, closed.by_peer) == (Code.SHUTDOWN, "the agent is stopping", True)
        assert time.monotonic() - began < defaults.DRAIN, "nothing runs that is worth waiting for"
