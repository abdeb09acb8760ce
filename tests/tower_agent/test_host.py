"""One host through a real tunnel: who the apiserver sees, what renewals and revocations change."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from certs.identity import REVOCATIONS
from certs.identity_files import DirectoryIdentityStore
from certs.revocation import RevocationList
from certs.rotation import announce, trust_id
from daemon.faults import TowerError
from gateway.policy import Policy
from protocol.aio.tunnel import Tunnel
from protocol.constants import Code
from tests.tower_agent.caller import Caller
from tests.tower_agent.conftest import MakeMember
from tests.tower_agent.tower import Tower, as_text, control_of, new_tower, serving_tower
from tests.waiting import until
from tower_agent import host as host_module

ADMIN = ("tower:east:admin", "tower:east:cluster-admins")


@pytest.mark.asyncio
async def test_three_kinds_of_caller(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        await member.agent(tower)
        tunnel = await tower.tunnel()

        admin = await Caller.open(tunnel, tower.caller_context(tower.client(*ADMIN)))
        assert await admin.ask("/api") == (
            200,
            {"user": ADMIN[0], "authorization": None, "client": "tower-agent", "path": "/api"},
        )

        bearer = await Caller.open(tunnel, tower.caller_context(None))
        status, seen = await bearer.ask("/api", Authorization="Bearer its-own", Impersonate_User="someone")
        assert (status, seen["client"], seen["authorization"]) == (200, None, "Bearer its-own")

        nobody = await Caller.open(tunnel, tower.caller_context(None))
        status, answer = await nobody.ask("/api")
        assert (status, answer["kind"]) == (401, "Status")
        assert member.apiserver.requests[0].headers["x-forwarded-for"] == "203.0.113.9"
        for caller in (admin, bearer, nobody):
            caller.close()


async def of_links(tower: Tower, count: int) -> list[Tunnel]:
    """The tunnels that live, once there are so many."""
    async with asyncio.timeout(30):
        while len(found := [each for each in tower.tunnels if each.closed is None]) != count:
            await asyncio.sleep(0.01)
    return found


@pytest.mark.slow
@pytest.mark.asyncio
async def test_several_links_are_tunnels_of_their_own_and_one_that_is_lost_leaves_the_others(
    make_member: MakeMember,
) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower, links=3)
        first, *rest = await of_links(tower, 3)
        assert len({tunnel.instance for tunnel in tower.tunnels}) == 3
        caller = await Caller.open(rest[0], tower.caller_context(tower.client(*ADMIN)))
        first.close(Code.TUNNEL_LOST, "cut by the test")
        assert agent.not_ready() is None
        assert (await caller.ask())[0] == 200
        again = await of_links(tower, 3)
        assert again[:2] == rest
        assert again[2].instance == first.instance
        caller.close()
        async with asyncio.timeout(30):  # the server knows of it before the agent does
            while b'tower_agent_tunnels{host="east"} 3.0' not in member.metrics.render():
                await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_one_of_several_links_renews_and_every_link_gets_the_new_identity(make_member: MakeMember) -> None:
    tower = new_tower(identity_ttl=1000.0, backdate=700.0)
    async with make_member() as member, serving_tower(tower):
        agent = await member.agent(tower, links=2)
        before, tower.backdate = agent.trust.validity.not_after, 0.0
        for tunnel in await of_links(tower, 2):
            async with asyncio.timeout(30):
                while (await control_of(tunnel).next("status"))["identity_expires"] == before:
                    pass
        assert len(tower.renewals) == 1


@pytest.mark.asyncio
async def test_the_policy_decides_and_is_replaced_while_running(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower)
        caller = await Caller.open(await tower.tunnel(), tower.caller_context(tower.client("jane")))
        status, answer = await caller.ask()
        assert status == 403
        assert "TWR406" in answer["message"]
        assert "jane" in answer["message"]
        agent.use_policy(Policy.from_dict("east", {"users": ["jane"]}))
        status, seen = await caller.ask()
        assert (status, seen["user"]) == (200, "jane")
        caller.close()


@pytest.mark.asyncio
async def test_a_revoked_caller_is_refused_at_its_next_request_and_after_a_restart(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower)
        tunnel = await tower.tunnel()
        control = control_of(tunnel)
        caller = await Caller.open(tunnel, tower.caller_context(tower.client(*ADMIN)))
        assert (await caller.ask())[0] == 200
        await control.next("status")
        older = tower.revoke()
        control.send("revocations", list=as_text(tower.revoke(users={ADMIN[0]: time.time() + 1})))
        control.send("revocations", list=as_text(older))
        control.send("revocations", list="%%%")
        await until(lambda: agent.trust.revocations is not None)
        status, answer = await caller.ask()
        assert status == 401
        assert "TWR403" in answer["message"]
        assert agent.trust.revocations.number == 2
        kept = DirectoryIdentityStore(member.folder / f"state-{tower.host}").place(tower.host, REVOCATIONS)
        await until(Path(kept).exists)
        caller.close()
        await agent.close("restart")
        member.agents.remove(agent)
        again = await member.agent(tower)
        assert isinstance(again.trust.revocations, RevocationList)
        assert again.trust.revocations.number == 2


@pytest.mark.asyncio
async def test_the_status_tells_what_the_host_needs(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower, services={"grafana": "127.0.0.1:3000"})
        control = control_of(await tower.tunnel())
        status = await control.next("status")
        assert (status["version"], status["uid"], status["nodes"]) == ("v1.35.4", "4be1", 3)
        assert status["probe"]["ready"] is True
        assert status["services"] == {"kubernetes": {"mode": "gateway"}, "grafana": {"address": "127.0.0.1:3000"}}
        assert status["policy"] == {"drift": None}
        assert status["requests"]["count"] == 0
        assert status["identity_expires"] > time.time()
        agent.drift = "the policy allows more"
        agent.report()
        assert (await control.next("status"))["policy"]["drift"] == "the policy allows more"


class KubeSphere:
    """The member's, as the host asks about it."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, str, str]] = []

    async def answer(self, nonce: bytes, *, host: str, cluster: str) -> dict[str, Any]:
        self.asked.append((nonce, host, cluster))
        return {"text": f"answer {len(self.asked)}"}


@pytest.mark.asyncio
async def test_a_host_that_asks_about_kubesphere_is_answered_in_each_status_and_hears_who_else_is_served(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "COMPARE_EVERY", 0.05)
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent, asked = await member.agent(tower), KubeSphere()
        agent._context = replace(agent._context, hosts=lambda: ["east", "west"], kubesphere=asked)
        control = control_of(await tower.tunnel())
        assert "kubesphere" not in await control.next("status")
        agent.report()
        assert (await control.next("status"))["hosts"] == ["east", "west"]
        # Two are no questions, and of the others one is asked.
        for nonce in ("not base64!", "ä", "bm9uY2U=", "b3RoZXI="):
            control.send("compare", nonce=nonce)
        assert (await control.next("status"))["kubesphere"] == {"text": "answer 1"}
        await until(lambda: len(asked.asked) >= 3)
        agent.report()
        assert (await control.next("status"))["kubesphere"] != {"text": "answer 1"}, "it is looked at now and then"
        assert set(asked.asked) == {(b"nonce", "east", agent.trust.identity.cluster)}


@pytest.mark.asyncio
async def test_a_host_that_asks_a_member_without_kubesphere_gets_no_answer(make_member: MakeMember) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower)
        control = control_of(await tower.tunnel())
        await control.next("status")
        control.send("compare", nonce="bm9uY2U=")
        control.send("names", names=["edge.example"])
        agent.report()
        assert "kubesphere" not in await control.next("status")


@pytest.mark.slow
@pytest.mark.asyncio
async def test_trust_that_could_not_be_kept_is_taken_again_without_being_said_again(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "TRUST_RETRY", (0.01, 0.05))
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower)
        control = control_of(await tower.tunnel())
        await control.next("status")
        store, failed = agent.trust._store, []
        save = store.save

        async def full(*args: Any, **more: Any) -> Any:
            failed.append(True)
            if len(failed) < 4:
                raise TowerError("TWR105", "the member's apiserver is away")
            return await save(*args, **more)

        monkeypatch.setattr(store, "save", full)
        later = tower.authority.with_next(at=time.time())
        control.send("trust", **announce(later))
        async with asyncio.timeout(20):
            while (await control.next("status"))["trust"] != trust_id(2, later.bundle):
                pass
        assert len(failed) == 4


@pytest.mark.asyncio
async def test_a_host_that_says_nonsense_without_pause_fills_no_log_and_its_last_word_is_heard(
    make_member: MakeMember,
) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower)
        control = control_of(await tower.tunnel())
        await control.next("status")
        with structlog.testing.capture_logs() as lines:
            for number in range(500):
                control.send("revocations", list=f"nonsense {number}")
                control.send("trust", number=number)
                control.send("names", names=[f"n{number}.example"])
            control.send("revocations", list=as_text(tower.revoke()))
            control.send("names", names=["last.example"])
            await until(lambda: agent.trust.revocations == tower.revocations)
            await until(lambda: any(line.get("names") == ["last.example"] for line in lines))
        said = Counter(line["event"] for line in lines)
        assert said["revocations-refused"] == said["trust-refused"] == 1
        assert said["names-wanted"] < 10


@pytest.mark.asyncio
async def test_a_withheld_list_is_said_in_the_log_and_to_the_host(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        agent = await member.agent(tower)
        control = control_of(await tower.tunnel())
        assert (await control.next("status"))["revocations"] == {"stale": None}
        monkeypatch.setattr("protocol.defaults.REVOCATIONS_STALE", -1.0)
        with structlog.testing.capture_logs() as lines:
            agent.report()
            agent.report()
            stale = (await control.next("status"))["revocations"]["stale"]
            assert "the newest revocation list that came is of" in stale
            assert (await control.next("status"))["revocations"]["stale"] == stale
            monkeypatch.setattr("protocol.defaults.REVOCATIONS_STALE", 3600.0)
            control.send("revocations", list=as_text(tower.revoke()))
            assert (await control.next("status"))["revocations"] == {"stale": None}
        said = [line for line in lines if line["event"].startswith("revocations-")]
        assert [line["event"] for line in said] == ["revocations-stale", "revocations-taken", "revocations-fresh"]
        assert (said[0]["code"], said[0]["host"]) == ("TWR508", "east")
