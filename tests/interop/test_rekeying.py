"""Keys are exchanged anew in the middle of bulk, both ways, with Go proxies of both vintages; no byte is lost."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from daemon.metrics import AgentMetrics
from daemon.supervisor import Supervisor
from protocol.aio import sshdial
from protocol.aio.proxydial import DialTarget
from protocol.aio.sshdial import dial_host
from protocol.aio.sshoptions import agent_options
from tests.interop.peers import GoProxy, OurAgent, Vintage
from tests.interop.test_go_peers import caller_of
from tests.loopback.member import BackendMember
from tests.protocol.aio.sshpeers import channel_limits
from tower_agent.legacychannels import LegacyChannels
from tower_agent.shipment import Credential

pytestmark = [pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(120)]
MIB = 1 << 20


async def test_bulk_goes_on_while_keys_change(
    member: BackendMember, vintage: Vintage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sshdial, "agent_options", partial(agent_options, rekey_bytes=MIB))
    tasks = Supervisor(on_failure=lambda name, error: pytest.fail(f"{name}: {error!r}"))
    channels = LegacyChannels(metrics=AgentMetrics(version="1"), tasks=tasks)
    shipment = await Credential(member.by_token, None, "127.0.0.1:9").read()
    channels.announce(shipment)
    with GoProxy(tmp_path / "proxy", vintage) as proxy:
        target = DialTarget(host="127.0.0.1", port=proxy.port, path="", ssl_context=None, proxy_env=False)
        session = await dial_host(target, limits=channel_limits(), on_channel=channels.on_channel)
        exchanged = 0
        wire = session._wire
        assert wire is not None
        send_newkeys = wire.send_newkeys

        def counted(k: bytes, h: bytes) -> None:
            nonlocal exchanged
            exchanged += 1
            send_newkeys(k, h)

        wire.send_newkeys = counted  # type: ignore[method-assign]
        await session.register(shipment.registration(cluster=proxy.name, token=proxy.token, version="1"))
        caller = await asyncio.to_thread(caller_of, proxy)
        down = [asyncio.to_thread(caller.ask, "/bytes/12000000") for _ in range(2)]
        answers = await asyncio.gather(*down)
        assert [answer.body == b"z" * 12_000_000 for answer in answers] == [True, True]

        def upload() -> bool:
            body = bytes(range(256)) * 16_000
            with caller.connect() as connection:
                path = f"/rekeyed/{vintage}"
                connection.send(connection.request("POST", path, f"Content-Length: {len(body)}", body=body))
                assert connection.answer("POST").status == 200
            (seen,) = member.seen(path)
            return seen.body.encode("latin-1") == body

        assert await asyncio.to_thread(upload)
        assert exchanged >= 10
        session.close("the test is over")
        channels.close()
        await tasks.close()
        await asyncio.sleep(0.05)


async def test_a_proxy_exchanges_keys_in_the_midst_of_bulk(
    member: BackendMember, vintage: Vintage, tmp_path: Path
) -> None:
    with (
        GoProxy(tmp_path / "proxy", vintage, rekey_bytes=60_000) as proxy,
        OurAgent(tmp_path / "agent", proxy.url, kubeconfig=member.by_token) as agent,
    ):
        caller = await asyncio.to_thread(caller_of, proxy)
        body = bytes(range(256)) * 16_000

        def upload() -> int:
            with caller.connect() as connection:
                connection.send(connection.request("POST", "/up", f"Content-Length: {len(body)}", body=body))
                return int(connection.answer("POST").status)

        down = [asyncio.to_thread(caller.ask, "/bytes/8000000") for _ in range(3)]
        up = [asyncio.to_thread(upload) for _ in range(2)]  # what the proxy writes is what it counts
        assert [answer.body == b"z" * 8_000_000 for answer in await asyncio.gather(*down)] == [True] * 3
        assert await asyncio.gather(*up) == [200, 200]
        assert len(agent.said("host-registered")) == 1
