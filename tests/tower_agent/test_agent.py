"""The whole process: several hosts, a policy that changes, rights that drift."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from certs.identity_files import DirectoryIdentityStore
from daemon.faults import TowerError
from daemon.process import Process
from protocol.constants import Code
from tests.tower_agent.backend import Request
from tests.tower_agent.caller import Caller
from tests.tower_agent.conftest import MakeMember, Member, echo_identity
from tests.tower_agent.tower import CLUSTER, Control, Tower, control_of, new_tower, serving_tower, state_dir
from tower_agent import agent as agent_module
from tower_agent.agent import Agent, _instance
from tower_agent.config import AgentConfig
from tower_agent.enrol import Enrolment
from tower_agent.wayout import WayOut


async def join(folder: Path, *towers: Tower) -> None:
    for tower in towers:
        await Enrolment(str(tower.token()), store=DirectoryIdentityStore(folder), way=WayOut()).run()


@asynccontextmanager
async def running(member: Member, folder: Path, **settings: object) -> AsyncIterator[Agent]:
    config = AgentConfig.model_validate(
        {"kubeconfig": member.kubeconfig, "state_dir": folder, "health_address": "127.0.0.1:0", **settings}
    )
    agent, process = Agent(config), Process(name="test")
    task = asyncio.create_task(agent.run(process))
    try:
        yield agent
    finally:
        process.stop.set()
        assert await task == 0
        await process.tasks.close()


@pytest.mark.slow
@pytest.mark.asyncio
async def test_two_hosts_and_one_identity_that_is_damaged(make_member: MakeMember, tmp_path: Path) -> None:
    folder = state_dir(tmp_path)
    east, west, north = new_tower("east"), new_tower("west"), new_tower("north")
    async with make_member() as member, serving_tower(east), serving_tower(west), serving_tower(north):
        await join(folder, east, west, north)
        (folder / "north" / "identity.json").write_bytes(b"{}")
        async with running(member, folder) as agent:
            for tower in (east, west):
                tunnel = await tower.tunnel()
                names = (f"tower:{tower.host}:admin", f"tower:{tower.host}:cluster-admins")
                caller = await Caller.open(tunnel, tower.caller_context(tower.client(*names)))
                assert (await caller.ask())[1]["user"] == names[0]
                caller.close()
            assert agent._not_ready() is None
        assert north.tunnels == []


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_host_that_is_joined_or_mended_while_the_agent_runs_is_served(
    make_member: MakeMember, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "HOSTS_EVERY", 0.05)
    folder = state_dir(tmp_path)
    east, west, north = new_tower("east"), new_tower("west"), new_tower("north")
    async with make_member() as member, serving_tower(east), serving_tower(west), serving_tower(north):
        await join(folder, east, north)
        identity = folder / "north" / "identity.json"
        whole = identity.read_bytes()
        identity.write_bytes(b"{}")
        async with running(member, folder):
            first = await east.tunnel()
            await join(folder, west)
            identity.write_bytes(whole)
            for tower in (west, north):
                caller = await Caller.open(await tower.tunnel(), tower.caller_context(tower.client("nobody")))
                assert (await caller.ask())[0] == 403
                caller.close()
            assert first.closed is None


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_host_that_is_joined_anew_after_its_agent_was_revoked_is_served_without_a_restart(
    make_member: MakeMember, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "HOSTS_EVERY", 0.05)
    folder = state_dir(tmp_path)
    east, west = new_tower("east"), new_tower("west")
    async with make_member() as member, serving_tower(east), serving_tower(west):
        await join(folder, east, west)
        async with running(member, folder):
            other, first = await west.tunnel(), await east.tunnel()
            east.revoke(agents={(CLUSTER, "a1"): time.time() + 60})
            first.close(Code.REVOKED, "revoked")
            east.agent = "a2"
            await join(folder, east)
            second = await east.tunnel()
            assert (first.peer.agent, second.peer.agent) == ("a1", "a2")
            caller = await Caller.open(second, east.caller_context(east.client("nobody")))
            assert (await caller.ask())[0] == 403
            caller.close()
            assert other.closed is None


def forgetful(request: Request) -> tuple[int, object]:
    """An apiserver whose RBAC lacks the probe."""
    if "selfsubjectaccessreviews" in request.path:
        return 201, {"status": {"allowed": b"probe" not in request.body}}
    if request.path == "/readyz":
        return 200, b"ok"
    return echo_identity(request)


@pytest.mark.asyncio
async def test_the_policy_is_followed_and_compared(
    make_member: MakeMember, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "POLICY_EVERY", 0.05)
    monkeypatch.setattr(agent_module, "DRIFT_EVERY", 0.05)
    folder, policy = state_dir(tmp_path), tmp_path / "policy.yaml"
    policy.write_text("hosts: {east: {users: ['tower:east:probe']}}")
    async with make_member(respond=forgetful) as member, serving_tower(new_tower()) as tower:
        await join(folder, tower)
        async with running(member, folder, policy_file=policy):
            tunnel = await tower.tunnel()
            control = control_of(tunnel)
            await until_drift(control, lambda drift: drift is not None and "user tower:east:probe" in drift)
            caller = await Caller.open(tunnel, tower.caller_context(tower.client("jane")))
            assert (await caller.ask())[0] == 403
            new = tmp_path / "new"
            new.write_text("hosts: {east: {users: [jane]}}")
            new.rename(policy)
            await until_drift(control, lambda drift: drift is None)
            assert (await caller.ask())[1]["user"] == "jane"
            policy.write_text("hosts: [")
            await until_drift(control, lambda drift: drift is not None and "read before is in force" in drift)
            assert (await caller.ask())[0] == 200
            caller.close()


async def until_drift(control: Control, fits: Callable[[str | None], bool]) -> None:
    """Wait for a status whose verdict on policy and RBAC fits."""
    async with asyncio.timeout(30):
        while not fits((await control.next("status"))["policy"]["drift"]):
            pass


@pytest.mark.asyncio
async def test_a_start_that_cannot_be_is_explained(make_member: MakeMember, tmp_path: Path) -> None:
    folder = state_dir(tmp_path)
    async with make_member() as member:
        config = AgentConfig(kubeconfig=member.kubeconfig, state_dir=folder, health_address="127.0.0.1:0")
        with pytest.raises(TowerError) as caught:
            await Agent(config).run(Process(name="test"))
        assert caught.value.code == "TWR225"
        assert str(folder) in caught.value.message
        held = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
        taken = f"127.0.0.1:{held.sockets[0].getsockname()[1]}"
        with pytest.raises(TowerError) as caught:
            await Agent(config.model_copy(update={"health_address": taken})).run(Process(name="test"))
        assert caught.value.code == "TWR103"
        assert taken in caught.value.message
        held.close()
        await held.wait_closed()


def test_a_process_that_is_started_anew_is_told_from_a_sibling(tmp_path: Path) -> None:
    first, again, sibling = _instance(tmp_path / "a"), _instance(tmp_path / "a"), _instance(tmp_path / "b")
    assert first != again
    assert first.rpartition("-")[0] == again.rpartition("-")[0] != sibling.rpartition("-")[0]
