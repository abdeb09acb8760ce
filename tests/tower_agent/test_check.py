"""`tower-agent check` names the hop that is wrong, and nothing but it."""

from __future__ import annotations

from pathlib import Path

import pytest

from certs.identity_files import DirectoryIdentityStore
from daemon.checks import Report
from daemon.checkview import by_hop
from daemon.faults import TowerError
from daemon.health import Health
from protocol.constants import CHECK_INSTANCE, Code
from protocol.errors import HandshakeRejected
from tests.tower_agent.backend import Pki, Request, backend
from tests.tower_agent.conftest import MakeMember
from tests.tower_agent.test_services import plain_server
from tests.tower_agent.tower import Tower, new_tower, serving_tower, state_dir
from tower_agent.check import run_checks
from tower_agent.config import AgentConfig
from tower_agent.enrol import Enrolment
from tower_agent.wayout import WayOut


def answers(request: Request) -> tuple[int, object]:
    if "selfsubjectaccessreviews" in request.path:
        return 201, {"status": {"allowed": b"admin" not in request.body}}
    return 200, b"ok"


async def joined(tower: Tower, folder: Path) -> Path:
    state = state_dir(folder)
    await Enrolment(str(tower.token()), store=DirectoryIdentityStore(state), way=WayOut()).run()
    return state


def statuses(report: Report) -> dict[str, str]:
    return {item.title: item.status for item in report.items}


FINE = ["identity", "dns", "tcp", "tls", "upgrade", "authentication", "apiserver"]
NOBODY = "127.0.0.1:1"  # a port that no test listens on


@pytest.mark.asyncio
async def test_all_is_well_but_for_the_rights(make_member: MakeMember, tmp_path: Path) -> None:
    async with make_member(respond=answers) as member, serving_tower(new_tower()) as tower:
        state = await joined(tower, tmp_path)
        config = AgentConfig(state_dir=state, kubeconfig=member.kubeconfig, health_address=NOBODY)
        report = await run_checks(config, version="1")
        assert statuses(report) == {**dict.fromkeys(FINE, "ok"), "agent": "warning", "rights": "warning"}
        assert report.exit_code() == 0
        shown = by_hop(report)
        assert "tcp 127.0.0.1" in shown
        assert "chain ends at 'tower root'" in shown or "chain ends at" in shown
        assert "TWR307" in shown
        assert "user tower:east:admin" in shown
        assert "! TWR228 agent: nobody answers at 127.0.0.1:1" in shown
        assert "tower-agent run" in shown
        assert (await tower.tunnels[-1].wait_closed()).text == "only a check"
        assert tower.tunnels[-1].instance.startswith(CHECK_INSTANCE)  # so that it changes nothing at the server


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("policy", "allowed", "code", "text"),
    [
        ("hosts: {east: {users: ['tower:east:admin']}}", True, "TWR406", "the policy does not admit tower:east:probe"),
        ("", False, "TWR307", "RBAC does not let this agent impersonate tower:east:probe"),
    ],
    ids=["policy", "rbac"],
)
async def test_a_host_whose_probe_is_not_let_in_is_a_failure(
    make_member: MakeMember, tmp_path: Path, policy: str, allowed: bool, code: str, text: str
) -> None:
    def said(request: Request) -> tuple[int, object]:
        return answers(request)[0], {"status": {"allowed": allowed}} if request.method == "POST" else b"ok"

    async with (
        make_member(respond=said) as member,
        serving_tower(new_tower()) as tower,
    ):
        state = await joined(tower, tmp_path)
        config = AgentConfig(state_dir=state, kubeconfig=member.kubeconfig, health_address=NOBODY)
        if policy:
            (tmp_path / "policy.yaml").write_text(policy)
            config = config.model_copy(update={"policy_file": tmp_path / "policy.yaml"})
        (item,) = [each for each in (await run_checks(config, version="1")).items if each.title == "rights"]
        assert (item.status, item.code) == ("failed", code)
        assert item.message.startswith(text)
        assert "never Ready" in item.message
        passed_through = {"kubernetes": {"mode": "passthrough"}}
        raw = AgentConfig(state_dir=state, kubeconfig=member.kubeconfig, services=passed_through)
        assert statuses(await run_checks(raw, version="1"))["rights"] != "failed", "nobody is impersonated there"


@pytest.mark.slow
@pytest.mark.asyncio
async def test_each_broken_hop_is_the_only_failure(make_member: MakeMember, tmp_path: Path) -> None:
    async with make_member(respond=answers) as member:
        middle = Pki(tmp_path, "Corp Inspection CA")
        async with serving_tower(new_tower()) as tower:
            state = await joined(tower, tmp_path)
            config = AgentConfig(state_dir=state, kubeconfig=member.kubeconfig)
            tower.refuse = HandshakeRejected(Code.REVOKED, "the agent a1 was revoked")
            report = await run_checks(config, version="1")
            assert statuses(report)["upgrade"] == "ok"
            assert failed(report) == ("authentication", "TWR209")
        report = await run_checks(config, version="1")
        assert failed(report) == ("tcp", "TWR211")
        assert statuses(report)["authentication"] == "skipped"
        assert statuses(report)["apiserver"] == "ok"
        assert report.exit_code() == 1
        async with serving_tower(tower, tls=plain_server(middle, tmp_path)):
            report = await run_checks(config, version="1")
            assert failed(report) == ("tls", "TWR214")
            assert "its chain ends at 'Corp Inspection CA', expected the tower CA sha256:" in by_hop(report)
        elsewhere = AgentConfig(
            state_dir=state, kubeconfig=member.kubeconfig, hosts=[{"name": "east", "url": "wss://tower.invalid:1"}]
        )
        report = await run_checks(elsewhere, version="1")
        assert failed(report) == ("dns", "TWR210")
        assert "proxy" not in statuses(report)
        report = await run_checks(config.model_copy(update={"proxy": "http://127.0.0.1:1"}), version="1")
        assert failed(report) == ("proxy", "TWR212")
        assert "x TWR212 proxy: the proxy http://127.0.0.1:1 cannot be reached" in by_hop(report)
        assert statuses(report)["tls"] == "skipped"
        plain = AgentConfig(
            state_dir=state, kubeconfig=member.kubeconfig, hosts=[{"name": "east", "url": "ws://127.0.0.1:1"}]
        )
        assert failed(await run_checks(plain, version="1")) == ("address", "TWR227")


def failed(report: Report) -> tuple[str, str]:
    (only,) = [item for item in report.items if item.status == "failed"]
    return only.title, only.code


@pytest.mark.asyncio
async def test_a_web_server_in_the_way_breaks_at_the_upgrade(make_member: MakeMember, tmp_path: Path) -> None:
    async with make_member(respond=answers) as member:
        async with serving_tower(new_tower()) as tower:
            state = await joined(tower, tmp_path)
        ca_file = tmp_path / "ca.pem"
        ca_file.write_bytes(member.pki.ca_pem)
        async with backend(lambda _request: (404, b"no such page"), member.pki.server) as page:
            config = AgentConfig(
                state_dir=state,
                kubeconfig=member.kubeconfig,
                ca_file=ca_file,
                hosts=[{"name": "east", "url": f"wss://127.0.0.1:{page.port}"}],
            )
            report = await run_checks(config, version="1")
            assert failed(report) == ("upgrade", "TWR215")
            assert "x TWR215 upgrade: the server answered 404" in by_hop(report)


@pytest.mark.asyncio
async def test_the_apiserver_is_checked_by_itself(make_member: MakeMember, tmp_path: Path) -> None:
    async with serving_tower(new_tower()) as tower:
        state = await joined(tower, tmp_path)
        async with make_member(respond=lambda _request: (401, {})) as member:
            config = AgentConfig(state_dir=state, kubeconfig=member.kubeconfig)
            report = await run_checks(config, version="1")
            assert failed(report) == ("apiserver", "TWR305")
            assert statuses(report)["rights"] == "skipped"
            assert statuses(report)["authentication"] == "ok"
        with pytest.raises(TowerError, match="no identity for host 'west'"):
            await run_checks(config, version="1", only="west")


@pytest.mark.asyncio
async def test_an_agent_that_runs_is_asked_whether_it_is_ready(make_member: MakeMember, tmp_path: Path) -> None:
    async with make_member(respond=answers) as member, serving_tower(new_tower()) as tower:
        state = await joined(tower, tmp_path)
        health = Health()
        address = await health.start("127.0.0.1:0")
        config = AgentConfig(state_dir=state, kubeconfig=member.kubeconfig, health_address=address)
        try:
            assert statuses(await run_checks(config, version="1"))["agent"] == "ok"
            health.check("east", lambda: "no tunnel for 3s")
            waits = await run_checks(config, version="1")
        finally:
            await health.stop()
        assert "TWR228 agent: the agent at " + address + " is not ready: east: no tunnel for 3s" in by_hop(waits)
        assert "it runs: mend what it names" in [item.next for item in waits.items]
        assert waits.exit_code() == 0
