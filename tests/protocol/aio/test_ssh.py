from __future__ import annotations

import asyncio
from typing import Any

import pytest

from protocol.aio import ssh
from protocol.aio.ssh import MAX_REQUEST_BYTES
from protocol.aio.sshchannel import Channel
from protocol.flow import Limits
from tests.protocol.aio.sshpeers import Collect, Echo, channel_limits, connected, echoed, ended

pytestmark = pytest.mark.asyncio


# ---- global requests ------------------------------------------------------------------------------------------------


async def test_requests_carry_raw_payloads_and_refusals_their_text() -> None:
    async with connected() as pair:
        pair.server_owner.answer = lambda name, payload: (False, b"Unauthorized agent")
        assert await pair.agent.request("config", b'{"Name":"m"}') == (False, b"Unauthorized agent")
        assert pair.server_owner.requests == [("config", b'{"Name":"m"}')]
        pair.server_owner.answer = lambda name, payload: (True, b"")
        assert await pair.agent.request("ping") == (True, b"")
        # Go's agents refuse every request of the server, which is as good a sign of life.
        pair.agent_owner.answer = lambda name, payload: (False, b"")
        assert await pair.server.request("ping") == (False, b"")


async def test_the_first_request_that_an_agent_sees_is_an_answer_to_its_own() -> None:
    async with connected() as pair:
        await pair.agent.request("config")
        assert pair.agent_owner.requests == []


async def test_a_request_above_the_bound_ends_the_connection() -> None:
    async with connected() as pair:
        with pytest.raises(ConnectionError):
            await pair.agent.request("config", b"x" * (MAX_REQUEST_BYTES + 1))
        assert pair.server_owner.requests == []
        assert await ended(pair.server_owner)


async def test_requests_without_an_answer_are_bounded() -> None:
    async with connected() as pair:
        pair.agent_owner.ssh_request = lambda *_: None  # type: ignore[method-assign]
        waiting = [asyncio.ensure_future(pair.server.request("ping")) for _ in range(ssh.MAX_WAITING_REQUESTS)]
        await asyncio.sleep(0)
        with pytest.raises(ConnectionError):
            await pair.server.request("ping")
        pair.agent.end("gone")
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(each) for each in results} == {ConnectionError}


async def test_an_owner_that_fails_at_the_end_is_heard_of_and_nobody_waits_on() -> None:
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context["exception"]))

    def fail(_reason: str) -> None:
        raise ValueError("no")

    async with connected() as pair:
        pair.agent_owner.ssh_request = lambda *_: None  # type: ignore[method-assign]
        pair.server_owner.ssh_lost = fail  # type: ignore[method-assign]
        answer = pair.server.ask("ping")
        pair.agent.end("gone")
        async with asyncio.timeout(30):
            with pytest.raises(ConnectionError):
                await answer
            while not failures:
                await asyncio.sleep(0.005)
    assert [str(each) for each in failures] == ["no"]


# ---- channels -------------------------------------------------------------------------------------------------------


async def test_an_agent_gets_the_raw_target() -> None:
    targets: list[bytes] = []

    def take(channel: Channel, target: bytes) -> None:
        targets.append(target)
        channel.accept(Echo())

    async with connected(take=take) as pair:
        end = Collect()
        pair.server.open("10.0.0.1:443", end)
        async with asyncio.timeout(30):
            await end.accepted.wait()
    assert targets == [b"10.0.0.1:443"]


async def test_channels_that_an_agent_opens_are_refused_and_thousands_end_its_connection() -> None:
    async with connected() as pair:
        refused = 0
        for _ in range(1000):
            end = Collect()
            pair.agent.open("127.0.0.1:22", end)
            async with asyncio.timeout(30):
                error = await end.lost
            if pair.server_owner.lost.is_set() or "tunnel" in str(error).lower():
                break
            assert "takes no channels" in str(error)
            refused += 1
        assert refused <= pair.server.limits.refused
        assert "not taken" in await ended(pair.server_owner)
        assert pair.server.channel_count == 0


async def test_channels_above_what_an_agent_takes_are_refused_and_the_others_go_on() -> None:
    limits = channel_limits(most=3)
    async with connected(take=lambda channel, _: channel.accept(Echo()), agent_limits=limits) as pair:
        ends = [Collect() for _ in range(5)]
        channels = [pair.server.open("echo", end) for end in ends]
        async with asyncio.timeout(30):
            refused = [str(await end.lost) for end in ends[3:]]
        assert all("3 channels are open already" in text for text in refused)
        for channel in channels[:3]:
            channel.write(b"well")
        async with asyncio.timeout(30):
            while any(bytes(end.data) != b"well" for end in ends[:3]):
                await asyncio.sleep(0.005)
            channels[0].close()
            await ends[0].lost
        assert await echoed(pair, b"another") == b"another"
    assert limits.budget.used == 0


async def test_a_host_that_asks_for_more_than_an_agent_takes_again_and_again_keeps_its_session() -> None:
    """A session lasts for months: what was too much at times must not add up to its end."""
    limits = channel_limits(most=1, refused=5)
    async with connected(take=lambda channel, _: channel.accept(Echo()), agent_limits=limits) as pair:
        well, end = pair.server.open("echo", Collect()), Collect()
        for _ in range(20):
            end = Collect()
            pair.server.open("echo", end)
            async with asyncio.timeout(30):
                assert "1 channels are open already" in str(await end.lost)
        assert await pair.server.request("ping") == (True, b"")
        assert not well.is_closing()


async def test_channels_that_are_none_are_refused_and_many_end_the_connection() -> None:
    limits = channel_limits(refused=5)
    async with connected(take=lambda channel, _: channel.accept(Echo()), agent_limits=limits) as pair:
        kinds = [(b"session", 1 << 15), (ssh.CHANNEL_TYPE, 0)] * 4
        for number, (kind, largest) in enumerate(kinds):
            head = b"".join(value.to_bytes(4, "big") for value in (900 + number, 1 << 20, largest))
            pair.server.know(Channel(pair.server, Collect(), pair.server.limits))
            pair.server.send_packet(90, len(kind).to_bytes(4, "big") + kind, head, b"echo")
        assert "not taken" in await ended(pair.agent_owner)


async def test_without_memory_a_channel_is_refused_before_anything_is_kept_for_it() -> None:
    limits = channel_limits(budget=4 * Limits().reserved_credit)
    async with connected(take=lambda channel, _: channel.accept(Echo()), agent_limits=limits) as pair:
        ends = [Collect() for _ in range(6)]
        for end in ends:
            pair.server.open("echo", end)
        async with asyncio.timeout(30):
            assert "no memory is left" in str(await ends[-1].lost)
        assert limits.budget.used <= 4 * Limits().reserved_credit
        assert await pair.server.request("ping") == (True, b"")


@pytest.mark.slow
async def test_channels_by_the_thousand_leave_nothing() -> None:
    limits, theirs = channel_limits(), channel_limits()
    async with connected(take=lambda channel, _: channel.accept(Echo()), limits=limits, agent_limits=theirs) as pair:

        async def one_after_the_other(count: int) -> None:
            for number in range(count):
                end = Collect()
                channel = pair.server.open("echo", end)
                channel.write(b"%d" % number)
                channel.write_eof()
                assert await end.lost is None
                assert bytes(end.data) == b"%d" % number

        async with asyncio.timeout(50):
            await asyncio.gather(*(one_after_the_other(250) for _ in range(12)))
            while pair.server.channel_count or pair.agent.channel_count:
                await asyncio.sleep(0.01)
        assert limits.budget.used == theirs.budget.used == 0
        assert not pair.server.ready
        assert not pair.agent.ready
