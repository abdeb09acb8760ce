"""`tower-agent check` at a host of the dialect: which hop is wrong, and that nothing is shipped by asking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daemon.checks import Report
from daemon.checkview import by_hop
from daemon.faults import TowerError
from tests.protocol.aio.sshhost import SshHost, ssh_host
from tests.tower_agent.conftest import MakeMember
from tower_agent.config import AgentConfig
from tower_agent.legacycheck import run_checks

pytestmark = pytest.mark.asyncio
NOBODY = "127.0.0.1:1"  # a port that no test listens on
REFUSED = 'parse "https://%zz": invalid URL escape "%zz"'


def configured(folder: Path, kubeconfig: Path, server: str, **section: Any) -> AgentConfig:
    token = folder / "cluster-token"
    token.touch(0o600)
    token.write_text("of-the-cluster\n")
    values = {
        "dialect": "kubesphere-v1",
        "kubesphere_v1": {"server": server, "cluster": "edge", "ship_credential": True, **section},
        "kubeconfig": kubeconfig,
        "token_file": token,
        "health_address": NOBODY,
        "proxy_from_environment": False,
    }
    return AgentConfig.model_validate(values)


def at(host: SshHost) -> str:
    return f"ws://127.0.0.1:{host.target.port}"


def statuses(report: Report) -> dict[str, str]:
    return {item.title: item.status for item in report.items}


def failed(report: Report) -> tuple[str, str, str]:
    (only,) = [item for item in report.items if item.status == "failed"]
    return only.title, only.code, only.message


FINE = ["dns", "tcp", "upgrade", "ssh", "registration", "credential", "apiserver"]


@pytest.mark.parametrize("said", [REFUSED, "tls: failed to find any PEM data in certificate input"])
async def test_all_is_well_and_nothing_of_the_member_was_said(
    make_member: MakeMember, tmp_path: Path, said: str
) -> None:
    async with make_member() as member, ssh_host() as host:
        host.answer = lambda name, payload: (False, said.encode())
        report = await run_checks(configured(tmp_path, member.kubeconfig, at(host)), version="1")
        assert statuses(report) == {**dict.fromkeys(FINE, "ok"), "agent": "warning"}
        assert report.exit_code() == 0
        shown = by_hop(report)
        assert "ok registration edge and its token are known" in shown
        assert "a client certificate with its private key" in shown
        ((name, payload),) = host.owners[0].requests
        document = json.loads(payload)
        assert (name, document["Name"], document["Token"]) == ("config", "edge", "of-the-cluster")
        rest = {key: value for key, value in document.items() if key not in ("Name", "Token", "Version")}
        assert set(rest.values()) == {"%zz", "bm9uZQ=="}, "neither an address nor a credential"


@pytest.mark.parametrize("proxy", ["socks5://proxy:1080", "http://proxy:99999"])
async def test_a_proxy_setting_that_cannot_be_used_is_the_failure(
    make_member: MakeMember, tmp_path: Path, proxy: str
) -> None:
    async with make_member() as member:
        config = configured(tmp_path, member.kubeconfig, "ws://127.0.0.1:1").model_copy(update={"proxy": proxy})
        title, code, message = failed(await run_checks(config, version="1"))
    assert (title, code) == ("proxy", "TWR212")
    assert "http://" in message


async def test_of_a_proxy_that_cannot_be_reached_only_its_name_is_fine(make_member: MakeMember, tmp_path: Path) -> None:
    async with make_member() as member:
        config = configured(tmp_path, member.kubeconfig, "ws://127.0.0.1:1")
        report = await run_checks(config.model_copy(update={"proxy": "http://127.0.0.1:2"}), version="1")
    assert [title for title, status in statuses(report).items() if status == "ok"] == [
        "dns", "credential", "apiserver",
    ]  # fmt: skip
    assert "x TWR212 proxy: the proxy http://127.0.0.1:2 cannot be reached" in by_hop(report)
    assert "not checked: upgrade, ssh, registration (needs TWR212)" in by_hop(report)


async def test_each_broken_hop_is_the_only_failure(make_member: MakeMember, tmp_path: Path) -> None:
    async with make_member() as member:
        async with ssh_host() as host:
            config = configured(tmp_path, member.kubeconfig, at(host))
            host.answer = lambda name, payload: (False, b"Unauthorized agent")
            report = await run_checks(config, version="1")
            assert failed(report)[:2] == ("registration", "TWR230")
            assert "refused the cluster edge: Unauthorized agent" in failed(report)[2]
            assert "compare name and token" in by_hop(report)
            host.answer = lambda name, payload: (True, b"")
            report = await run_checks(config, version="1")
            assert statuses(report)["registration"] == "warning"
        report = await run_checks(config, version="1")
        assert failed(report)[:2] == ("tcp", "TWR211")
        assert [title for title, status in statuses(report).items() if status == "skipped"] == [
            "upgrade", "ssh", "registration",
        ]  # fmt: skip
        assert statuses(report)["apiserver"] == "ok"
        assert report.exit_code() == 1
        secure = configured(tmp_path, member.kubeconfig, f"wss://127.0.0.1:{member.apiserver.port}")
        assert failed(await run_checks(secure, version="1"))[:2] == ("tls", "TWR214")
        page = configured(tmp_path, member.kubeconfig, f"ws://127.0.0.1:{member.apiserver.port}")
        assert failed(await run_checks(page, version="1"))[0] == "upgrade"


async def test_a_host_that_breaks_off_ssh_or_the_registration_is_named(make_member: MakeMember, tmp_path: Path) -> None:
    async with make_member() as member, ssh_host() as host:
        config = configured(tmp_path, member.kubeconfig, at(host))

        def hangs_up(name: str, payload: bytes) -> None:
            host.sessions[-1].end("no")

        host.answer = hangs_up
        title, code, message = failed(await run_checks(config, version="1"))
        assert (title, code) == ("registration", "TWR217")
        assert "ended the session instead of answering the registration" in message


async def test_without_consent_the_check_says_so_and_still_walks(make_member: MakeMember, tmp_path: Path) -> None:
    async with make_member() as member, ssh_host() as host:
        host.answer = lambda name, payload: (False, REFUSED.encode())
        config = configured(tmp_path, member.kubeconfig, at(host), ship_credential=False)
        report = await run_checks(config, version="1")
        assert failed(report)[:2] == ("credential", "TWR231")
        assert statuses(report)["registration"] == "ok"
        assert "--ship-credential" in by_hop(report)


async def test_what_is_not_configured_is_named(make_member: MakeMember, tmp_path: Path) -> None:
    async with make_member() as member:
        with pytest.raises(TowerError, match=r"kubesphere_v1\.server is missing"):
            await run_checks(configured(tmp_path, member.kubeconfig, ""), version="1")
