"""A tunnel that changes its link, over real sockets: nothing lost or twice, and a reason where it cannot go on."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from typing import Any

import pytest

from protocol.aio.dial import FEATURES
from protocol.aio.hops import DialError
from protocol.aio.listener import Admission
from protocol.aio.tunnel import Tunnel
from protocol.constants import FEATURE_ACK, Code
from protocol.errors import HandshakeRejected, StreamRefused, TunnelLost
from protocol.flow import Limits
from tests.protocol.aio.rawagent import connected, request
from tests.protocol.aio.tunnels import Echo, Recorder, accepting, agent, quiet, tower
from tests.waiting import until

pytestmark = pytest.mark.asyncio

CUTS = 20


@asynccontextmanager
async def lasting(contexts: Any = (None, None), **more: Any):
    """A tower whose tunnels can be gone on with by agents of their cluster."""

    def find(tunnel_id: str, identity: Any) -> Tunnel | None:
        found = kept.get(tunnel_id)
        mine = found is not None and found.closed is None and found.peer.cluster == identity.cluster
        return found if mine else None

    kept: dict[str, Tunnel] = {}
    async with tower(*contexts, find=find, **more) as made:
        on_tunnel = made.listener.on_tunnel

        def keep(tunnel: Tunnel) -> None:
            kept[tunnel.id] = tunnel
            on_tunnel(tunnel)

        made.listener.on_tunnel = keep
        yield made


def fresh(**more: Any) -> Any:
    return agent(features=more.pop("features", FEATURES), **more)


async def again(made: Any, tunnel: Tunnel, **more: Any) -> Tunnel:
    return await made.dial(handshake=more.pop("handshake", None) or fresh(), resume=tunnel, **more)


@pytest.mark.parametrize("private", [True, False], ids=["tls", "plain"])
async def test_bulk_and_an_echo_through_many_cuts(contexts: Any, private: bool) -> None:
    payload = bytes(range(256)) * 4096 * 16
    sink, bulk, echo, caller = Recorder(), Recorder(), Echo(), Recorder()
    async with lasting(contexts if private else (None, None)) as made:
        server, agent_end = await made.pair(accepting(sink, echo), handshake=fresh())
        down = await server.open("bulk", bulk)
        small = await server.open("echo", caller)
        sent = 0
        for cut in range(CUTS):
            while sent * (CUTS + 1) < len(payload) * (cut + 1):
                down.write(payload[sent : sent + 65_536])
                sent += 65_536
            small.write(b"line %d\n" % cut)
            if cut % 2:
                await caller.bytes(len(caller.received) + 1)
            (server if cut % 3 else agent_end)._link.abort("the plug")
            assert await again(made, agent_end) is agent_end
        down.write(payload[sent:])
        down.write_eof()
        small.write_eof()
        await sink.saw("eof")
        await caller.saw("eof")
        assert hashlib.sha256(sink.received).digest() == hashlib.sha256(payload).digest()
        assert bytes(caller.received) == b"".join(b"line %d\n" % cut for cut in range(CUTS))
        assert agent_end.resumes == server.resumes == CUTS
        assert sink.calls.count("eof") == 1
        await quiet(server, agent_end)
        bulk.transport.abort()
        sink.transport.close()


async def test_owners_hear_of_the_pause_and_streams_do_not() -> None:
    said: list[tuple[str, object]] = []
    caller = Recorder()
    async with lasting() as made:
        server, agent_end = await made.pair(accepting(Echo()), handshake=fresh())
        for name, end in (("server", server), ("agent", agent_end)):
            end.on_detached = lambda tunnel, lost, name=name: said.append((f"{name} detached", lost.text))
            end.on_resumed = lambda tunnel, pause, name=name: said.append((f"{name} resumed", pause >= 0))
        stream = await server.open("echo", caller)
        agent_end._link.abort("cut by a proxy")
        assert agent_end.detached
        assert agent_end.stalled
        assert agent_end.closed is None
        stream.write(b"written while there was no link")
        await again(made, agent_end)
        assert await caller.bytes(31) == b"written while there was no link"
        assert not server.detached
        assert caller.calls == ["made"]
        assert ("agent detached", "cut by a proxy") in said
        assert [name for name, _ in said].count("server resumed") == 1
        assert said.count(("agent resumed", True)) == 1


async def test_an_agent_comes_back_while_the_server_believes_in_the_old_link() -> None:
    caller = Recorder()
    async with lasting() as made:
        server, agent_end = await made.pair(accepting(Echo()), handshake=fresh())
        stream = await server.open("echo", caller)
        old = agent_end._link
        agent_end.propose()  # drops the agent's end only; what the server sends to it is lost
        assert old.closing
        server._link._transport.pause_reading()
        stream.write(b"into the void")
        await again(made, agent_end)
        assert await caller.bytes(13) == b"into the void"
        assert server.session.epoch == agent_end.session.epoch == 3, "attempts are numbered, not links"


async def test_after_the_window_every_stream_ends_with_the_reason_at_both_ends() -> None:
    limits = Limits(resume_window=0.3)
    far, caller = Recorder(), Recorder()
    async with lasting(limits=limits) as made:
        server, agent_end = await made.pair(accepting(far), handshake=fresh(), limits=limits)
        await server.open("kubernetes", caller)
        agent_end._link.abort("the plug")
        for one in (far, caller):
            await one.saw("lost")
            assert isinstance(one.error, TunnelLost)
            assert "no new link within 0.3 s" in one.error.text
        assert (await server.wait_closed()).code is Code.TUNNEL_LOST
        with pytest.raises(DialError, match="it has ended, or the time to come back was over") as refused:
            await again(made, agent_end)
        assert refused.value.code == Code.UNKNOWN_TUNNEL


async def test_a_silent_link_is_replaced_too() -> None:
    limits = Limits(ping_interval=0.1, dead_after=0.4)
    caller, lost = Recorder(), asyncio.Event()
    async with lasting(limits=limits) as made:
        server, agent_end = await made.pair(accepting(Echo()), handshake=fresh())
        stream = await server.open("echo", caller)
        server.on_detached = lambda tunnel, why: lost.set()
        agent_end._link._transport.pause_reading()
        await lost.wait()
        assert server.detached
        stream.write(b"after the silence")
        await again(made, agent_end)
        assert await caller.bytes(17) == b"after the silence"


async def test_a_tunnel_that_the_server_does_not_know_ends_with_its_words_and_a_new_one_opens() -> None:
    far = Recorder()
    async with lasting() as made:
        server, agent_end = await made.pair(accepting(far), handshake=fresh())
        await server.open("kubernetes", Recorder())
        server.on_detached = None
        server.lose(Code.INTERNAL, "the process started anew, say")
        with pytest.raises(DialError, match="the server refused: this server has no such tunnel for this agent"):
            await again(made, agent_end)
        await far.saw("lost")
        assert isinstance(far.error, TunnelLost)
        assert "it cannot go on: the server refused" in far.error.text
        assert agent_end.closed is not None
        newer = await made.dial(handshake=fresh())
        assert newer is not agent_end


async def test_whoever_takes_a_new_tunnel_in_its_place_gets_it_over_the_same_link() -> None:
    far, caller = Recorder(), Recorder()
    async with lasting() as made:
        server, agent_end = await made.pair(accepting(far, Echo()), handshake=fresh())
        await server.open("kubernetes", Recorder())
        server.on_detached = None
        server.lose(Code.INTERNAL, "the process started anew, say")
        newer = await made.dial(accepting(Echo()), handshake=fresh(), resume=agent_end, anew=True)
        await far.saw("lost")
        assert "it cannot go on: this server has no such tunnel for this agent" in str(far.error)
        assert agent_end.closed is not None
        assert agent_end.closed.code is Code.UNKNOWN_TUNNEL
        server = await made.tunnels.get()
        assert (newer.id, newer.resumes) == (server.id, 0)
        assert (await made.refusal()).code is Code.UNKNOWN_TUNNEL, "a resume that was refused is counted"
        stream = await server.open("echo", caller)
        stream.write(b"anew")
        assert await caller.bytes(4) == b"anew"


async def test_a_tunnel_that_waits_is_resumed_whatever_else_would_be_taken() -> None:
    async with lasting() as made:
        server, agent_end = await made.pair(accepting(Echo()), handshake=fresh())
        agent_end._link.abort("the plug")
        assert await again(made, agent_end, anew=True) is agent_end
        assert server.resumes == 1


async def test_no_new_tunnel_in_its_place_where_none_is_admitted() -> None:
    def full(*_asked: Any) -> None:
        raise HandshakeRejected(Code.SHUTDOWN, "this server is stopping", 4.0)

    async with lasting() as made:
        server, agent_end = await made.pair(accepting(Echo()), handshake=fresh())
        server.on_detached = None
        server.lose(Code.INTERNAL, "gone")
        made.listener.admit_new = full
        with pytest.raises(DialError, match="no such tunnel"):
            await again(made, agent_end, anew=True)
        assert agent_end.closed is not None, "its streams need not wait for what is admitted"
        with pytest.raises(DialError, match="is stopping") as refused:
            await made.dial(handshake=fresh())
        assert refused.value.retry_after == 4.0


async def test_nobody_goes_on_with_the_tunnel_of_another_cluster() -> None:
    caller = Recorder()
    async with lasting() as made:
        server, agent_end = await made.pair(accepting(Echo()), handshake=fresh())
        stream = await server.open("echo", caller)
        thief = await made.dial(handshake=fresh(cluster="beta", instance="agent-1"), instance="agent-1")
        thief.id = agent_end.id
        with pytest.raises(DialError, match="no such tunnel for this agent"):
            await again(made, thief, handshake=fresh(cluster="beta"))
        stream.write(b"unharmed")
        assert await caller.bytes(8) == b"unharmed"
        assert server.resumes == 0


async def test_positions_and_links_that_do_not_fit_are_refused_and_harm_nothing() -> None:
    caller = Recorder()
    async with lasting() as made:
        server, agent_end = await made.pair(accepting(Echo()), handshake=fresh())
        stream = await server.open("echo", caller)
        await quiet(server, agent_end)
        liar = await made.dial(handshake=fresh(instance="liar"), instance="liar")
        liar.id = agent_end.id
        liar.session.frames_received = 10**6
        with pytest.raises(DialError, match="1000000 frames received, expected") as refused:
            await again(made, liar)
        assert refused.value.code == Code.POSITION
        late = await made.dial(handshake=fresh(instance="late"), instance="late")
        late.id, late._proposed = agent_end.id, 0
        with pytest.raises(DialError, match="link 1 of the tunnel, which is at 1 already") as refused:
            await again(made, late)
        assert refused.value.code == Code.STALE_LINK
        stream.write(b"unharmed")
        assert await caller.bytes(8) == b"unharmed"


@pytest.mark.parametrize("first", [0, 1], ids=["older first", "newer first"])
async def test_of_two_dials_for_one_tunnel_only_the_newest_goes_on_and_nothing_comes_twice(first: int) -> None:
    sink, gates, asked = Recorder(), [asyncio.Event(), asyncio.Event()], 0

    async def admit(hello: Any, identity: Any, remote: str) -> Admission:
        nonlocal asked
        if hello.instance == "again":
            asked += 1
            await gates[asked - 1].wait()
        return Admission("alpha-1")

    async def behind(number: int) -> asyncio.Task[Tunnel]:
        dialled = asyncio.create_task(again(made, agent_end, handshake=fresh(instance="again")))
        await until(lambda: asked >= number)
        return dialled

    async with lasting(authenticate=admit) as made:
        server, agent_end = await made.pair(accepting(sink), handshake=fresh())
        stream = await server.open("sink", Recorder())
        stream.write(b"a")
        await sink.bytes(1)
        dials = [await behind(1), await behind(2)]
        gates[first].set()
        await asyncio.wait([dials[first]], timeout=10)
        stream.write(b"b")
        if first:
            await sink.bytes(2)
        gates[1 - first].set()
        with pytest.raises(DialError):
            await dials[0]
        assert await dials[1] is agent_end
        stream.write(b"c")
        await sink.bytes(3)
        await quiet(server, agent_end)
        assert (bytes(sink.received), server.closed, agent_end.closed) == (b"abc", None, None)


@pytest.mark.parametrize("code", [Code.REVOKED, Code.DELETED, Code.BUSY])
async def test_who_may_not_come_back_at_all_ends_what_it_had_and_who_may_later_does_not(code: Code) -> None:
    """The server's word that it was revoked may have gone with the link."""
    refused = False

    async def admit(hello: Any, identity: Any, remote: str) -> Admission:
        if refused:
            raise HandshakeRejected(code, "the agent a1 is not welcome")
        return Admission("alpha-1")

    held = Recorder()
    async with lasting(authenticate=admit) as made:
        server, agent_end = await made.pair(accepting(held), handshake=fresh())
        await server.open("exec", Recorder())
        agent_end._link.abort("the plug")
        refused = True
        with pytest.raises(DialError, match="not welcome"):
            await again(made, agent_end)
        if code is Code.BUSY:
            assert agent_end.detached
            assert "lost" not in held.calls
        else:
            assert agent_end.closed is not None
            assert agent_end.closed.code is code
            await held.saw("lost")


async def test_a_tunnel_that_ends_while_it_is_dialled_for_ends_at_the_server_too() -> None:
    asked, gate = asyncio.Event(), asyncio.Event()

    async def admit(hello: Any, identity: Any, remote: str) -> Admission:
        if hello.instance == "again":
            asked.set()
            await gate.wait()
        return Admission("alpha-1")

    async with lasting(authenticate=admit) as made:
        server, agent_end = await made.pair(handshake=fresh())
        dialled = asyncio.create_task(again(made, agent_end, handshake=fresh(instance="again")))
        await asyncio.wait_for(asked.wait(), 30)
        agent_end.close(Code.SHUTDOWN, "the agent is stopping")
        gate.set()
        with pytest.raises(DialError, match="ended meanwhile: the agent is stopping"):
            await dialled
        closed = await asyncio.wait_for(server.wait_closed(), 30)
        assert (closed.code, closed.text, closed.by_peer) == (Code.SHUTDOWN, "the agent is stopping", True)


async def test_without_the_feature_at_either_end_a_cut_is_the_end() -> None:
    caller = Recorder()
    async with lasting() as made:
        server, agent_end = await made.pair(accepting(Echo()), handshake=fresh(features=[FEATURE_ACK]))
        await server.open("echo", caller)
        agent_end._link.abort("the plug")
        await caller.saw("lost")
        assert (await agent_end.wait_closed()).text == "the plug"
        assert not server.detached


async def test_a_server_that_no_longer_resumes_gives_a_new_tunnel() -> None:
    async with lasting() as made:
        _, agent_end = await made.pair(handshake=fresh())
        agent_end._link.abort("the plug")
        newer = await again(made, agent_end, handshake=fresh(features=[FEATURE_ACK]))
        assert newer is not agent_end
        assert (await agent_end.wait_closed()).text == "it cannot go on over the new link: a new tunnel took its place"


async def test_an_identity_that_may_only_renew_goes_on_with_nothing() -> None:
    renew_only = False

    async def admit(hello: Any, identity: Any, remote: str) -> Admission:
        return Admission("alpha-1", renew_only=renew_only)

    async with lasting(authenticate=admit) as made:
        server, agent_end = await made.pair(handshake=fresh())
        renew_only = True
        with pytest.raises(DialError, match="no such tunnel for this agent"):
            await again(made, agent_end)
        limited = await made.dial(handshake=fresh())
        limited._link.abort("the plug")
        assert (await limited.wait_closed()).text == "the plug", "and is not worth waiting for"
        assert server.closed is None


async def test_a_detached_tunnel_can_be_closed_and_takes_no_answer_for_granted() -> None:
    async with lasting() as made:
        server, agent_end = await made.pair(handshake=fresh())
        agent_end._link.abort("the plug")
        with pytest.raises(TimeoutError):
            await agent_end.ping(deadline=0.05)
        pending = asyncio.ensure_future(agent_end.open("x", Recorder()))
        await asyncio.sleep(0)
        agent_end.close(Code.SHUTDOWN, "the agent is stopping")
        with pytest.raises(TunnelLost, match="the agent is stopping"):
            await pending
        with pytest.raises(StreamRefused):
            await agent_end.open("x", Recorder())
        server.close(Code.SHUTDOWN, "bye")


async def test_who_comes_back_says_for_which_tunnel_before_anything_else_and_may_be_carried_elsewhere() -> None:
    """Until it is known who takes the connection nothing is read of it, and what was read goes along."""
    asked: list[tuple[str, bytes]] = []
    answers: list[Any] = []

    def carry(tunnel: str, request: bytes, transport: Any, _remote: str, done: Any) -> bool:
        assert not transport.is_reading()
        asked.append((tunnel, request))
        answers.append(done)
        return take

    caller, take = Recorder(), False
    async with lasting() as made:
        made.listener.carry = carry
        server, agent_end = await made.pair(accepting(Echo()), handshake=fresh())
        assert asked == [], "a new tunnel is nobody else's"
        stream = await server.open("echo", caller)
        await again(made, agent_end)
        assert asked[-1][0] == server.id, "nobody took it: it goes on here"
        take = True
        dialling = asyncio.create_task(again(made, agent_end))
        while len(asked) < 2:
            await asyncio.sleep(0)
        head, _, behind = asked[-1][1].partition(b"\r\n\r\n")
        assert head.startswith(b"GET /v1/tunnel HTTP/1.1\r\n")
        assert f"Tower-Resume: {server.id}".encode() in head
        assert behind == b""
        answers[-1](False)
        await dialling
        stream.write(b"here after all")
        await caller.bytes(14)
        assert len(asked) == 2, "it is asked about once"


async def test_an_upgrade_that_names_several_tunnels_or_is_none_is_answered_and_harms_nobody() -> None:
    named: list[str] = []
    async with lasting() as made:
        made.listener.carry = lambda tunnel, *_: bool(named.append(tunnel))
        twice = request(Tower_Resume="one\r\nTower-Resume: two")
        async with connected(made) as raw:
            raw.write(twice)
            assert " 101 " in await raw.head()
        assert named == ["one"]
        async with connected(made) as raw:
            raw.write(request(Tower_Resume="one", Connection=None, Upgrade=None))
            assert " 4" in await raw.head()
        assert named == ["one"]
