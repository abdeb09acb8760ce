"""The pools: which certificate is shown, what is kept, bounded and dropped."""

from __future__ import annotations

import asyncio
import socket

import pytest

from gateway.decide import PoolName
from gateway.errors import UpstreamError
from gateway.tls import Apiserver, upstream_context
from gateway.upstream import Upstreams
from tests.gateway.kit import Apiside, FakeApiserver, Pki

pytestmark = pytest.mark.asyncio


async def silent(side: Apiside) -> None:
    await side.until_gone()


class Ready:
    """An apiserver and the pools towards it."""

    def __init__(self, pki: Pki, **options: object) -> None:
        self.pki, self.options = pki, options
        self.server = FakeApiserver(answer=silent)

    async def __aenter__(self) -> Upstreams:
        await self.server.start(self.pki.apiserver_context())
        self.upstreams = Upstreams(
            Apiserver("127.0.0.1", self.server.port, ca_pem=self.pki.cluster.pem.decode()),
            certificate_file=str(self.pki.agent.certificate),
            key_file=str(self.pki.agent.key),
            **self.options,
        )
        return self.upstreams

    async def __aexit__(self, *_: object) -> None:
        self.upstreams.close()
        await self.server.stop()


async def test_only_the_impersonation_pool_shows_the_agents_certificate(pki: Pki) -> None:
    ready = Ready(pki)
    async with ready as upstreams:
        await upstreams.pool(PoolName.BEARER).dial()
        await upstreams.pool(PoolName.IMPERSONATION).dial()
        while len(ready.server.certificates) < 2:
            await asyncio.sleep(0)
        assert ready.server.certificates[0] is None
        assert ready.server.certificates[1] is not None
        assert upstreams.bearer is not upstreams.impersonation


async def test_an_apiserver_that_vanishes_is_noticed_though_nothing_is_sent(pki: Pki) -> None:
    async with Ready(pki) as upstreams:
        sock = (await upstreams.bearer.dial()).transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_the_last_used_connection_is_taken_first_and_old_ones_expire(pki: Pki) -> None:
    async with Ready(pki) as upstreams:
        pool = upstreams.bearer
        first, second = await pool.dial(), await pool.dial()
        assert pool.take() is None
        pool.release(first, 100.0)
        pool.release(second, 200.0)
        pool.expire(161.0)
        assert (pool.idle_count, pool.open_count) == (1, 1)
        assert pool.take() is second
        assert pool.take() is None


async def test_a_connection_that_the_apiserver_closes_is_forgotten(pki: Pki) -> None:
    async def hang_up(side: Apiside) -> None:
        side.writer.close()

    ready = Ready(pki)
    ready.server.answer = hang_up
    async with ready as upstreams:
        pool = upstreams.bearer
        pool.release(await pool.dial(), 0.0)
        async with asyncio.timeout(30):
            while pool.open_count:
                await asyncio.sleep(0)
        assert pool.take() is None


async def test_unasked_bytes_drop_an_idle_connection(pki: Pki) -> None:
    async def chatter(side: Apiside) -> None:
        await side.say(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        await side.until_gone()

    ready = Ready(pki)
    ready.server.answer = chatter
    async with ready as upstreams:
        pool = upstreams.bearer
        pool.release(await pool.dial(), 0.0)
        async with asyncio.timeout(30):
            while pool.open_count:
                await asyncio.sleep(0)
        assert pool.idle_count == 0


async def test_connections_are_bounded_with_those_being_dialled(pki: Pki) -> None:
    async with Ready(pki, limit=2) as upstreams:
        results = await asyncio.gather(*(upstreams.bearer.dial() for _ in range(3)), return_exceptions=True)
        refused = [each for each in results if isinstance(each, UpstreamError)]
        assert [error.http_status for error in refused] == [429]
        assert upstreams.bearer.open_count == 2


async def test_a_cancelled_dial_leaves_nothing(pki: Pki) -> None:
    async with Ready(pki, limit=1) as upstreams:
        task = asyncio.create_task(upstreams.bearer.dial())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await upstreams.bearer.dial()


async def test_a_closed_pool_dials_no_more(pki: Pki) -> None:
    async with Ready(pki) as upstreams:
        upstreams.close()
        with pytest.raises(UpstreamError, match="stopping"):
            await upstreams.bearer.dial()


async def test_a_name_that_does_not_fit_is_not_trusted(pki: Pki) -> None:
    server = FakeApiserver(answer=silent)
    await server.start(pki.apiserver_context())
    pem = pki.cluster.pem.decode()
    upstreams = Upstreams(Apiserver("127.0.0.1", server.port, server_name="kubernetes.default", ca_pem=pem))
    with pytest.raises(UpstreamError, match=r"kubernetes\.default") as caught:
        await upstreams.bearer.dial()
    assert caught.value.code == "TWR304"
    upstreams.close()
    await server.stop()


async def test_another_credential_holds_for_the_next_connection_and_the_old_ones_end_with_their_use(pki: Pki) -> None:
    ready = Ready(pki)
    async with ready as upstreams:
        pool = upstreams.impersonation
        idle, used = await pool.dial(), await pool.dial()
        pool.release(idle, 0.0)
        pool.renew(upstream_context(upstreams.apiserver), authorization=lambda: b"Bearer new")
        assert pool.authorization is not None
        assert pool.authorization() == b"Bearer new"
        assert pool.take() is None, "an idle connection would still show the old certificate"
        pool.release(used, 0.0)
        assert pool.take() is None
        fresh = await pool.dial()
        while len(ready.server.certificates) < 3:
            await asyncio.sleep(0)
        assert ready.server.certificates[2] is None
        pool.release(fresh, 0.0)
        assert pool.take() is fresh


async def test_a_credential_that_changes_during_a_dial_is_the_one_that_is_shown(pki: Pki) -> None:
    made = 0

    async def connect(factory):
        nonlocal made
        made += 1
        ends = await asyncio.get_running_loop().create_connection(factory, "127.0.0.1", ready.server.port)
        if made == 1:
            upstreams.impersonation.renew(upstream_context(upstreams.apiserver))
        return ends

    ready = Ready(pki, connect=connect)
    async with ready as upstreams:
        pool = upstreams.impersonation
        connection = await pool.dial()
        assert made == 2
        assert pool.open_count == 1
        pool.release(connection, 0.0)
        assert pool.take() is connection, "it stands on the new one"


async def test_connections_can_be_made_by_somebody_else(pki: Pki) -> None:
    asked: list[str] = []
    server: FakeApiserver

    async def connect(factory):
        asked.append("a channel of a tunnel")
        return await asyncio.get_running_loop().create_connection(factory, "127.0.0.1", server.port)

    ready = Ready(pki, connect=connect)
    server = ready.server
    async with ready as upstreams:
        await upstreams.bearer.dial()
        await upstreams.impersonation.dial()
    assert len(asked) == 2


async def test_a_connect_that_fails_is_told_as_a_dial_that_fails(pki: Pki) -> None:
    async def connect(factory):
        raise ConnectionError("the tunnel is over")

    async with Ready(pki, connect=connect) as upstreams:
        with pytest.raises(UpstreamError, match="the tunnel is over") as caught:
            await upstreams.bearer.dial()
        assert caught.value.code == "TWR301"
