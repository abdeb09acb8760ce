"""Go agents at a whole server: callers get through, credentials are shared as they should be, bindings come and go."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from certs.token import hash_secret
from protocol import defaults
from protocol.constants import Code
from tests.tower_server.kit import Agent, admin, caller_context, connection, enrol, exchange
from tests.tower_server.legacy.goagent import TOKEN, Apiserver, apiserver, b64
from tests.tower_server.legacy.kit import CLUSTER, host
from tests.waiting import until
from tower_server.legacy.tunnel import LegacyTunnel
from tower_server.records import KUBERNETES

pytestmark = pytest.mark.asyncio
BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
BINDING = "tower-legacy:hq:cluster-admins"


async def test_without_the_key_in_the_configuration_nothing_listens_and_no_token_is_made(tmp_path: Path) -> None:
    from tests.tower_server.kit import running

    async with running(tmp_path) as server:
        assert server.services.legacy_address == ""
        await server.add(CLUSTER)
        answer = await admin(server, "POST", f"/v1/clusters/{CLUSTER}/legacy-token", {})
        assert answer.status == 400
        assert "kubesphere_v1.enabled" in answer.json()["mend"]


async def test_a_port_that_is_taken_is_named_with_its_mend(tmp_path: Path) -> None:
    from daemon.faults import TowerError

    taken = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    try:
        with pytest.raises(TowerError, match=f"kubesphere-v1, 127.0.0.1:{port}") as caught:
            async with host(tmp_path, kubesphere_v1={"listen": f"127.0.0.1:{port}"}):
                pass
        assert caught.value.code == "TWR103"
        assert "kubesphere_v1.listen" in caught.value.mend
    finally:
        taken.close()
        await taken.wait_closed()


async def test_callers_reach_both_services_of_a_go_agents_member(tmp_path: Path) -> None:
    async with host(tmp_path) as tower:
        agent = await tower.registered()
        answer = await tower.ask("/api/v1/pods?limit=1", "Impersonate-Extra-x: 1")
        assert answer.status == 403, "certificate callers may not bring Impersonate- headers of their own"
        answer = await tower.ask("/api/v1/pods?limit=1")
        assert (answer.status, answer.body) == (200, b"ok")
        (seen,) = tower.backend.to("/api/v1/pods?limit=1")
        assert seen.certificate == "agent-of-the-member"
        assert seen.headers["impersonate-user"] == "tower:hq:admin"
        assert seen.headers["impersonate-group"] == "tower:hq:cluster-admins"
        await until(lambda: tower.running.services.clusters.ports.of(CLUSTER)[-1].service == "kubesphere")
        port = tower.running.port(CLUSTER, "kubesphere")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello ks")
        async with asyncio.timeout(30):
            assert await reader.readexactly(8) == b"HELLO KS"
        writer.close()
        assert set(agent.targets) == {tower.backend.address, tower.backend.raw_address}


async def test_a_token_agents_callers_are_impersonated_by_its_token(tmp_path: Path) -> None:
    async with host(tmp_path) as tower:
        await tower.registered(CertData=None, KeyData=None, BearerToken=b64(b"the-agents-token\n"))
        assert (await tower.ask("/one")).status == 200
        (seen,) = tower.backend.to("/one")
        assert seen.headers["authorization"] == "Bearer the-agents-token"
        assert seen.headers["impersonate-user"] == "tower:hq:admin"
        assert seen.certificate is None


async def test_a_bearer_caller_never_rides_on_the_agents_certificate(tmp_path: Path) -> None:
    async with host(tmp_path) as tower:
        await tower.registered()
        await tower.ask("/warm-up")  # leaves a connection with the agent's certificate behind
        plain = caller_context(tower.running)
        answer = await tower.ask("/as-bearer", "Authorization: Bearer garbage", context=plain)
        assert answer.status == 200
        (seen,) = tower.backend.to("/as-bearer")
        assert seen.certificate is None
        assert seen.headers["authorization"] == "Bearer garbage"
        assert "impersonate-user" not in seen.headers


async def test_others_get_401_and_the_member_hears_nothing(tmp_path: Path) -> None:
    async with host(tmp_path) as tower:
        await tower.registered()
        answer = await tower.ask("/nobody", context=caller_context(tower.running))
        assert answer.status == 401
        assert answer.json()["details"]["causes"][0]["reason"] == "TWR401"
        answer = await tower.ask("/other", context=tower.context("tower:hq:someone", ()))
        assert answer.status == 403
        assert not tower.backend.to("/nobody")
        assert not tower.backend.to("/other")


async def test_the_serving_certificate_is_the_clusters_alone(tmp_path: Path) -> None:
    async with host(tmp_path) as tower:
        await tower.registered()
        context = tower.context()
        with pytest.raises(OSError, match="certificate"):
            await tower.ask("/", context=context, host="other.members.tower")


async def test_a_new_agents_credential_replaces_the_old_one_at_once_and_an_old_ones_end_changes_nothing(
    tmp_path: Path,
) -> None:
    async with host(tmp_path) as tower:
        first = await tower.registered(CertData=None, KeyData=None, BearerToken=b64(b"old"))
        await tower.ask("/before")
        second = await tower.registered(CertData=None, KeyData=None, BearerToken=b64(b"new"))
        for _ in range(4):  # whichever of the two tunnels they take
            await tower.ask("/after")
        assert {each.headers["authorization"] for each in tower.backend.to("/after")} == {"Bearer new"}
        await second.end()
        await until(lambda: len(tower.member.tunnels) == 1)
        assert (await tower.ask("/again")).status == 200
        assert tower.backend.to("/again")[0].headers["authorization"] == "Bearer old"
        await first.end()


async def test_a_replaced_certificate_leaves_no_connection_behind(tmp_path: Path) -> None:
    async with host(tmp_path) as tower:
        await tower.registered()
        await tower.ask("/by-certificate")
        await tower.registered(CertData=None, KeyData=None, BearerToken=b64(b"new"))
        for _ in range(4):
            await tower.ask("/by-token")
        assert {each.certificate for each in tower.backend.to("/by-token")} == {None}


@pytest.mark.slow
async def test_a_second_agent_with_the_same_credential_leaves_the_connections_of_the_first(tmp_path: Path) -> None:
    async with host(tmp_path) as tower:
        token = {"CertData": None, "KeyData": None, "BearerToken": b64(b"of-both")}
        await tower.registered(**token)
        await tower.ask("/first")
        pool = tower.member.tunnels[0].gateway.upstreams.impersonation
        await until(lambda: pool.idle_count)
        kept = pool._idle[-1].transport
        await tower.registered(**token)
        assert not kept.is_closing()
        await tower.registered(CertData=None, KeyData=None, BearerToken=b64(b"another"))
        await until(kept.is_closing)


async def test_agents_that_reach_the_apiserver_by_ways_of_their_own_are_held_to_their_own_authorities(
    tmp_path: Path,
) -> None:
    """As one in a pod and one beside a load balancer that ends TLS; of each way the newest credential counts."""
    async with host(tmp_path) as tower, apiserver(tmp_path / "balancer") as balancer:

        def by(token: bytes, backend: Apiserver) -> dict[str, Any]:
            way = {"KubernetesSvcHost": backend.address, "CAData": b64(backend.ca.pem)}
            return {"CertData": None, "KeyData": None, "BearerToken": b64(token), **way}

        async def shown(path: str) -> set[str]:
            """To callers who stay for a while: each tunnel has its share of them."""
            port, server, request = tower.running.port(CLUSTER), f"{CLUSTER}.members.tower", f"GET {path} HTTP/1.1\r\n"
            async with contextlib.AsyncExitStack() as callers:
                for _ in range(4):
                    caller = connection(port, ssl=tower.context(), server_hostname=server)
                    ends = await callers.enter_async_context(caller)
                    assert (await exchange(*ends, f"{request}Host: x\r\n\r\n".encode())).status == 200
            return {each.headers["authorization"] for way in (tower.backend, balancer) for each in way.to(path)}

        await tower.registered(**by(b"outside-1", balancer))
        await tower.registered(**by(b"pod", tower.backend))
        assert await shown("/two") == {"Bearer outside-1", "Bearer pod"}
        newest = await tower.registered(**by(b"outside-2", balancer))
        assert await shown("/three") <= {"Bearer outside-2", "Bearer pod"}
        await newest.end()
        await until(lambda: len(tower.member.tunnels) == 2)
        assert await shown("/again") == {"Bearer outside-1", "Bearer pod"}


@pytest.mark.slow  # as long as a channel may wait to be confirmed
async def test_an_agent_that_falls_silent_is_named_and_not_its_apiserver(tmp_path: Path) -> None:
    async with host(tmp_path) as tower:
        agent = await tower.registered()
        await until(lambda: tower.member.verdict.state == "Connected")
        assert (await tower.ask("/before")).status == 200
        tower.member.tunnels[0].gateway.upstreams.expire(float("inf"))
        agent.link._transport.pause_reading()  # type: ignore[union-attr]
        (tunnel,), now = tower.member.tunnels, asyncio.get_running_loop().time
        await until(lambda: now() - tunnel._link.heard_at > 0.3)  # what was under way has come
        answer = await tower.ask("/silent")
        assert (answer.status, answer.json()["kind"]) == (503, "Status")
        assert "the agent has not answered for 4.5 s (TWR222)" in answer.json()["message"]
        agent.link._transport.resume_reading()  # type: ignore[union-attr]
        assert (await tower.ask("/after")).status == 200
        assert not tower.backend.to("/silent")
        agent.serve = False  # as ours in this dialect while it dials
        tower.member.tunnels[0].gateway.upstreams.expire(float("inf"))
        answer = await tower.ask("/dialled")
        assert (answer.status, "TWR303" in answer.json()["message"]) == (504, True)


@pytest.mark.slow
async def test_what_an_agent_says_in_refusing_a_channel_reaches_the_caller(tmp_path: Path) -> None:
    """As ours does in this dialect: it dials before it confirms."""
    async with host(tmp_path) as tower:
        agent = await tower.registered()
        agent._take = lambda channel, _target: channel.refuse(  # type: ignore[method-assign]
            2, "cannot connect to 10.96.0.1:443 (no route)"
        )
        tower.member.tunnels[0].gateway.upstreams.expire(float("inf"))
        answer = await tower.ask("/refused")
        assert answer.status == 502
        assert "no route" in answer.json()["message"]
        assert "TWR301" in answer.json()["message"]


@pytest.mark.slow
@pytest.mark.parametrize("ended_by", ["agent", "server"])
async def test_a_caller_who_waits_for_an_answer_when_its_tunnel_ends_is_told_so(tmp_path: Path, ended_by: str) -> None:
    """Its TLS ends here: it need not guess, as a caller of a lost native tunnel has to."""
    async with host(tmp_path) as tower:
        agent = await tower.registered()
        assert (await tower.ask("/first")).status == 200
        tower.backend.silent = True
        asking = [asyncio.ensure_future(tower.ask(f"/waiting/{number}")) for number in range(3)]
        await until(lambda: all(tower.backend.to(f"/waiting/{number}") for number in range(3)))
        if ended_by == "agent":
            agent.link.abort("broken off")
        else:
            tower.member.tunnels[0].close(Code.DEAD_PEER, "nothing heard from the agent for 15 s")
        for answer in await asyncio.gather(*asking):
            assert (answer.status, answer.json()["kind"]) == (503, "Status")
            assert "TWR201" in answer.json()["message"]
            assert "the tunnel ended" in answer.json()["message"]


async def test_a_tunnel_that_ends_in_the_turn_in_which_it_takes_waiting_callers_mixes_no_second_tls_into_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with host(tmp_path) as tower:
        await tower.registered()
        tower.member.tunnels[0].close(Code.DEAD_PEER, "nothing heard from the agent")
        asking = [asyncio.ensure_future(tower.ask("/held")) for _ in range(3)]
        await until(lambda: [bool(each._early) for each in tower.member.hold._waiting] == [True] * 3)
        start_open, ended = LegacyTunnel.start_open, []

        def ends(tunnel: LegacyTunnel, service: str, protocol: Any, **more: Any) -> Any:
            if service == KUBERNETES and not ended:
                ended.append(tunnel)
                tunnel.loop.call_soon(tunnel.close, Code.TUNNEL_LOST, "the link broke")
            return start_open(tunnel, service, protocol, **more)

        monkeypatch.setattr(LegacyTunnel, "start_open", ends)
        first, second = await tower.dialled(), await tower.dialled()
        assert await first.register(tower.config()) == ""
        await until(lambda: ended)
        assert await second.register(tower.config()) == ""
        for answer in await asyncio.gather(*asking):
            assert (answer.status, answer.json()["kind"]) == (503, "Status")
        assert (await tower.ask("/after")).status == 200


async def test_an_agent_that_is_gone_as_soon_as_it_is_registered_fails_no_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with host(tmp_path) as tower:
        made = LegacyTunnel.__init__

        def gone(tunnel: LegacyTunnel, **more: Any) -> None:
            made(tunnel, **more)
            tunnel.loop.call_soon(tunnel.close, Code.TUNNEL_LOST, "the link broke")

        monkeypatch.setattr(LegacyTunnel, "__init__", gone)
        agent = await tower.dialled()
        assert await agent.register(tower.config()) == ""
        await until(lambda: [each.event for each in tower.member.history] != [] and not tower.member.tunnels)
        async with asyncio.timeout(30):
            await agent.lost.wait()
    assert "task-failed" not in capsys.readouterr().out


async def test_a_caller_who_asks_in_the_turn_in_which_the_link_breaks_is_told_of_the_tunnel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, breaks = LegacyTunnel.connect, asyncio.Event()

    async def breaking(tunnel: LegacyTunnel, factory: Any) -> Any:
        if breaks.is_set():
            tunnel.wire.drop("the peer closed the connection")  # SSH knows at once, the tunnel a turn later
        return await connect(tunnel, factory)

    monkeypatch.setattr(LegacyTunnel, "connect", breaking)
    async with host(tmp_path) as tower:
        await tower.registered()
        await until(lambda: tower.member.verdict.state == "Connected")
        tower.member.tunnels[0].gateway.upstreams.expire(float("inf"))
        breaks.set()
        answer = await tower.ask("/now")
        assert (answer.status, answer.json()["kind"]) == (503, "Status")
        assert "TWR201" in answer.json()["message"]


async def test_a_caller_in_the_midst_of_its_tls_when_its_tunnel_ends_is_answered_once_it_has_asked(
    tmp_path: Path,
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async with host(tmp_path) as tower:
        await tower.registered()

        async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """A long way: what the server says first arrives when the tunnel is gone."""
            near, far = await asyncio.open_connection("127.0.0.1", tower.running.port(CLUSTER))
            far.write(await reader.read(65536))
            said = await near.read(65536)
            begun.set()
            await ended.wait()
            writer.write(said)
            await asyncio.gather(_pass_on(reader, far), _pass_on(near, writer))

        async with await asyncio.start_server(hold, "127.0.0.1", 0) as way, asyncio.timeout(30):
            port, name = way.sockets[0].getsockname()[1], f"{CLUSTER}.members.tower"
            connecting = asyncio.ensure_future(
                asyncio.open_connection("127.0.0.1", port, ssl=tower.context(), server_hostname=name)
            )
            await begun.wait()
            tower.member.tunnels[0].close(Code.DEAD_PEER, "nothing heard from the agent for 15 s")
            ended.set()
            reader, writer = await connecting
            answer = await exchange(reader, writer, b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n")
            writer.close()
        assert (answer.status, answer.json()["kind"]) == (503, "Status")
        assert "TWR201" in answer.json()["message"]
        assert not tower.backend.to("/late")


@pytest.mark.parametrize("part", [0, 0.5, 1])
async def test_a_caller_whose_tls_was_not_begun_when_its_tunnel_ends_is_answered_too(
    tmp_path: Path, part: float
) -> None:
    """It has connected, and said nothing yet, half of its hello, or a hello that nobody has read."""
    async with host(tmp_path) as tower, asyncio.timeout(30):
        await tower.registered()
        (tunnel,) = tower.member.tunnels

        async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            hello = await reader.read(65536)
            said = int(len(hello) * part)
            near, far = await asyncio.open_connection("127.0.0.1", tower.running.port(CLUSTER))
            await until(lambda: [each for each in tunnel.streams() if each.service == "kubernetes"])
            far.write(hello[:said])
            if part < 1:
                await until(lambda: tunnel.streams()[-1].bytes_out == said)
            tunnel.close(Code.TUNNEL_LOST, "the peer closed the connection")
            far.write(hello[said:])
            await asyncio.gather(_pass_on(reader, far), _pass_on(near, writer))

        async with await asyncio.start_server(late, "127.0.0.1", 0) as way:
            port, name = way.sockets[0].getsockname()[1], f"{CLUSTER}.members.tower"
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tower.context(), server_hostname=name)
            answer = await exchange(reader, writer, b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n")
            writer.close()
        assert (answer.status, answer.json()["kind"]) == (503, "Status")
        assert "TWR201" in answer.json()["message"]


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def test_a_caller_who_never_goes_on_with_its_tls_when_its_tunnel_has_ended_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "HANDSHAKE_DEADLINE", 0.2)  # the gateway's own was read before
    async with host(tmp_path) as tower:
        await tower.registered()
        hello = ssl.MemoryBIO()
        tls = tower.context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname=f"{CLUSTER}.members.tower")
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        async with asyncio.timeout(8):
            reader, writer = await asyncio.open_connection("127.0.0.1", tower.running.port(CLUSTER))
            writer.write(hello.read())
            assert await reader.read(1)
            (tunnel,) = tower.member.tunnels
            tunnel.close(Code.DEAD_PEER, "nothing heard from the agent for 15 s")
            with pytest.raises(ConnectionResetError):
                await reader.read()
        writer.close()
        await until(lambda: not tunnel.stream_count)


async def test_an_answer_that_was_begun_when_its_tunnel_ends_is_cut_and_never_ended_cleanly(tmp_path: Path) -> None:
    async with host(tmp_path) as tower:
        agent = await tower.registered()
        tower.backend.answer = b"z" * 50_000_000
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", tower.running.port(CLUSTER), ssl=tower.context(), server_hostname=f"{CLUSTER}.members.tower"
        )
        writer.write(b"GET /half HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(30):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            agent.link.abort("broken off")
            with pytest.raises(ConnectionError):
                await reader.read()
        writer.transport.abort()


async def test_agents_of_one_cluster_are_independent(tmp_path: Path) -> None:
    async with host(tmp_path) as tower:
        agents = [await tower.registered() for _ in range(3)]
        await agents[1].end()
        await until(lambda: len(tower.member.tunnels) == 2)
        assert (await tower.ask("/still")).status == 200
        await agents[0].end()
        await agents[2].end()
        await until(lambda: not tower.member.tunnels)
        answer = await tower.ask("/gone")
        assert answer.status == 503
        assert answer.json()["kind"] == "Status"


async def test_the_hosts_group_is_bound_and_what_is_weaker_is_said(tmp_path: Path) -> None:
    async with host(tmp_path) as tower:
        await tower.registered()
        await until(lambda: tower.backend.to(BINDINGS))
        (seen,) = tower.backend.to(BINDINGS)
        assert seen.first.startswith("POST")
        assert b"tower:hq:cluster-admins" in seen.body
        assert seen.certificate == "agent-of-the-member"
        assert "impersonate-user" not in seen.headers
        await until(lambda: any("Bound" in each for t in tower.member.tunnels for each in t.data["conditions"]))
        weaker = await tower.condition("LegacyAgent")
        for said in ("shipped", "no identity", "cuts its streams"):
            assert said in weaker["message"]
        assert (await tower.condition("LegacyBinding"))["status"] == "True"
        assert (await tower.view())["dialect"] == "kubesphere-v1"


async def test_a_binding_that_the_member_refuses_is_a_condition_and_tried_again(tmp_path: Path) -> None:
    async with host(tmp_path) as tower:
        tower.backend.refuse_bindings = True
        await tower.registered()
        legacy = tower.running.server._parts.legacy
        await until(lambda: legacy._shared[CLUSTER].said)
        found = await tower.condition("LegacyBinding")
        assert (found["status"], found["reason"]) == ("Unknown", "Failed")
        assert "403" in found["message"]
        assert BINDING in found["message"]
        tower.backend.refuse_bindings = False
        legacy.housekeeping()
        await until(lambda: legacy._shared[CLUSTER].bound)
        assert (await tower.condition("LegacyBinding"))["status"] == "True"


async def test_native_agents_are_preferred_and_take_the_binding_away(tmp_path: Path) -> None:
    async with host(tmp_path) as tower:
        await tower.registered()
        legacy = tower.running.server._parts.legacy
        await until(lambda: legacy._shared[CLUSTER].bound)
        port = tower.running.port(CLUSTER)
        made = (await admin(tower.running, "POST", f"/v1/clusters/{CLUSTER}/tokens", {})).json()
        from certs.token import parse_token

        native = Agent(tower.running, await enrol(tower.running, parse_token(made["token"])))
        await native.connect()
        await until(lambda: len(tower.member.tunnels) == 2)
        assert tower.running.port(CLUSTER) == port
        assert (await tower.view())["dialect"] == "tower.v1"
        assert tower.member.pick().dialect == "tower.v1"
        assert not tower.backend.to("/native-only")
        await until(lambda: all("probed" in each.data for each in tower.member.tunnels))
        legacy.housekeeping()
        await until(lambda: legacy._shared[CLUSTER].bound is False)
        assert any(each.first.startswith("DELETE") for each in tower.backend.to(f"{BINDINGS}/{BINDING}"))
        await native.close()
        await until(lambda: len(tower.member.tunnels) == 1)
        assert (await tower.ask("/back")).status == 200  # the Go agent takes over while it is there


async def test_a_window_lets_a_go_agent_in_beside_native_ones(tmp_path: Path) -> None:
    async with host(tmp_path) as tower:
        made = (await admin(tower.running, "POST", f"/v1/clusters/{CLUSTER}/tokens", {})).json()
        from certs.token import parse_token

        await enrol(tower.running, parse_token(made["token"]))
        agent = await tower.dialled()
        said = await agent.register(tower.config())
        assert "TWR241" in said
        assert f"`towerctl create legacy-window {CLUSTER}`" in said
        wrong = await tower.dialled()
        assert "TWR240" in await wrong.register(tower.config(Token="cd" * 32))  # learns nothing of windows
        assert (await tower.admin("POST", "legacy-window", {"ttl": 60})).status == 201
        await tower.registered()
        assert (await tower.admin("DELETE", "legacy-window")).status == 200
        again = await tower.dialled()
        assert "TWR241" in await again.register(tower.config())


async def test_another_token_closes_the_agents_of_the_one_before(tmp_path: Path) -> None:
    async with host(tmp_path) as tower:
        agent = await tower.registered()
        made = (await tower.admin("POST", "legacy-token", {})).json()
        assert len(made["token"]) == 64
        async with asyncio.timeout(30):
            await agent.lost.wait()
        old = await tower.dialled()
        assert "TWR240" in await old.register(tower.config())
        await tower.registered(Token=made["token"])
        gone = (await tower.admin("DELETE", "legacy-token")).json()
        assert gone["closed"] == 1
        last = await tower.dialled()
        assert "TWR240" in await last.register(tower.config(Token=made["token"]))


@pytest.mark.parametrize(
    ("token", "said"), [("cd" * 32, "token for Go agents was changed"), (None, "no Go agents any")]
)
async def test_a_token_that_a_controller_changes_closes_the_agents_of_the_one_before(
    tmp_path: Path, token: str | None, said: str
) -> None:
    async with host(tmp_path) as tower:
        agents = [await tower.registered() for _ in range(2)]
        await tower.heard_of_record()  # written anew, and the same as before
        assert len(tower.member.tunnels) == 2
        await tower.heard_of_record(legacy_token=hash_secret(token) if token else None)
        async with asyncio.timeout(30):
            await asyncio.gather(*(agent.lost.wait() for agent in agents))
        assert all(said in agent.reason for agent in agents)
        assert (await tower.view())["history"][0]["code"] == "REVOKED"
        again = await tower.dialled()
        assert "TWR240" in await again.register(tower.config())


async def test_a_token_that_changes_while_an_agent_registers_by_it_lets_it_go(tmp_path: Path) -> None:
    async with host(tmp_path) as tower:
        legacy = tower.running.server._parts.legacy
        taking, waiting, listed = asyncio.Event(), asyncio.Event(), legacy._registrar._agents.list

        async def slow(cluster: str) -> Any:
            waiting.set()
            await taking.wait()
            return await listed(cluster)

        legacy._registrar._agents.list = slow
        agent = await tower.dialled()
        asked = asyncio.ensure_future(agent.register(tower.config()))
        async with asyncio.timeout(30):
            await waiting.wait()
            await tower.admin("POST", "legacy-token", {"token": "cd" * 32})
            taking.set()
            await agent.lost.wait()
        assert "token for Go agents was changed" in agent.reason
        assert not tower.member.tunnels
        await asyncio.gather(asked, return_exceptions=True)


async def test_a_record_that_was_read_anew_in_silence_is_looked_at_now_and_then(tmp_path: Path) -> None:
    async with host(tmp_path) as tower:
        agent = await tower.registered()
        clusters = tower.running.services.clusters
        clusters._records[CLUSTER] = replace(clusters.get(CLUSTER)[0], legacy_token=hash_secret("cd" * 32))
        tower.running.server._parts.legacy.housekeeping()
        async with asyncio.timeout(30):
            await agent.lost.wait()


@pytest.mark.parametrize("token", ["short", "x" * 513, "a" * 40 + " b", "ü" * 40])
async def test_a_token_that_is_no_secret_is_refused(tmp_path: Path, token: str) -> None:
    async with host(tmp_path) as tower:
        answer = await tower.admin("POST", "legacy-token", {"token": token})
        assert answer.status == 400
        assert "32 to 512" in answer.json()["message"]
        assert token not in answer.json()["message"]


async def test_the_record_keeps_no_token(tmp_path: Path) -> None:
    async with host(tmp_path) as tower:
        await tower.registered()
        assert TOKEN not in str(await tower.view())
        for file in (tmp_path / "state").iterdir():
            assert TOKEN.encode() not in file.read_bytes()


async def test_callers_come_by_the_names_of_the_clusters_services_as_soon_as_these_are_known(tmp_path: Path) -> None:
    async with host(tmp_path) as tower:
        await tower.registered()
        service = "mc-edge-1.kubesphere-system.svc"
        with pytest.raises(ssl.SSLCertVerificationError):
            await tower.ask("/before", host=service)
        await tower.heard_of_record(service_names=(service, "10.96.0.9"))
        assert (await tower.ask("/by-name", host=service)).status == 200
        assert (await tower.ask("/by-address", host="10.96.0.9")).status == 200
        first = tower.member.tunnels[0].gateway.context
        await tower.agents[0].end()
        await until(lambda: not tower.member.tunnels)
        await tower.registered()
        assert tower.member.tunnels[0].gateway.context is first, "made once, not for each time that an agent comes back"
