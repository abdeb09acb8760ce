"""How a session with a host of the dialect is kept: registration, silence, refusals, another credential."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from daemon.kube import access
from daemon.metrics import AgentMetrics
from daemon.supervisor import Supervisor
from protocol.flow import Limits
from tests.lab.pki import ClusterCA, write_kubeconfig
from tests.protocol.aio.sshhost import SshHost, ssh_host
from tests.protocol.aio.sshpeers import channel_limits
from tests.waiting import until
from tower_agent import legacylink
from tower_agent.legacychannels import LegacyChannels
from tower_agent.legacylink import LegacyHost, LegacyLink
from tower_agent.shipment import Credential

pytestmark = pytest.mark.asyncio


@contextlib.asynccontextmanager
async def linked(folder: Path, **limits: float) -> AsyncIterator[tuple[SshHost, LegacyLink]]:
    """An agent's link to a host; the token that it ships lies in `folder/token`."""
    ca = ClusterCA(folder, "member-ca")
    (folder / "token").write_text("first")
    (folder / "of-cluster").write_text("secret")
    kubeconfig = write_kubeconfig(folder / "kubeconfig", name="m", server="https://10.0.0.1:6443", ca=ca.pem)
    config = yaml.safe_load(kubeconfig.read_text())
    config["users"][0]["user"] = {"tokenFile": str(folder / "token")}
    kubeconfig.write_text(yaml.safe_dump(config))
    metrics = AgentMetrics(version="1")
    tasks = Supervisor(on_failure=lambda name, error: pytest.fail(f"{name}: {error!r}"))
    async with ssh_host() as host:
        bounds = replace(channel_limits(), credit=Limits(**limits))  # type: ignore[arg-type]
        link = LegacyLink(
            LegacyHost(
                target=host.target, cluster="edge", token=(folder / "of-cluster").read_text, version="1", limits=bounds
            ),
            Credential(kubeconfig, None, "console.svc:80"),
            LegacyChannels(metrics=metrics, tasks=tasks),
            metrics=metrics,
        )
        running = tasks.restart(link.run, name="link")
        try:
            yield host, link
        finally:
            running.cancel()
            link.close("the test is over")
            await tasks.close()
            await asyncio.sleep(0.05)


def registered(host: SshHost) -> list[str]:
    """The tokens of the member that came, in order."""
    sent = [payload for owner in host.owners for name, payload in owner.requests if name == "config"]
    return [base64.b64decode(json.loads(payload)["BearerToken"]).decode() for payload in sent]


@pytest.mark.slow
async def test_a_changed_credential_comes_by_a_session_of_its_own_after_the_first_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "TOKEN_REREAD", 0.0)
    monkeypatch.setattr(legacylink, "CREDENTIAL_EVERY", 0.05)
    async with linked(tmp_path) as (host, link):
        await until(lambda: link.session is not None)
        (tmp_path / "new").write_text("second")
        (tmp_path / "new").rename(tmp_path / "token")
        await until(lambda: host.owners[0].lost.is_set())
        assert registered(host) == ["first"], "no second session while the first one lives"
        await until(lambda: len(registered(host)) == 2)
        assert registered(host) == ["first", "second"]
        await until(lambda: link.session is not None)
        assert link.fault is None


async def test_a_token_that_cannot_be_read_for_a_moment_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "TOKEN_REREAD", 0.0)
    monkeypatch.setattr(legacylink, "CREDENTIAL_EVERY", 0.02)
    reads: list[None] = []
    read = Credential.read

    async def counted(self: Credential) -> object:
        reads.append(None)
        return await read(self)

    monkeypatch.setattr(Credential, "read", counted)
    async with linked(tmp_path) as (host, link):
        await until(lambda: link.session is not None)
        (tmp_path / "token").rename(tmp_path / "away")
        before = len(reads)
        await until(lambda: len(reads) > before + 3)
        (tmp_path / "away").rename(tmp_path / "token")
        assert registered(host) == ["first"]
        assert link.session is not None


async def test_a_refusal_is_a_fault_with_the_hosts_words_until_it_is_taken(tmp_path: Path) -> None:
    async with linked(tmp_path) as (host, link):
        host.answer = lambda name, payload: (False, b"Unauthorized agent")
        await until(lambda: link.fault is not None)
        assert link.fault is not None
        assert link.fault.code == "TWR230"
        assert link.fault.message.endswith("refused the cluster edge: Unauthorized agent")
        assert "spec.connection.token" in link.fault.mend
        await until(lambda: host.owners[0].lost.is_set())  # Go's agents leave such a session open
        host.answer = lambda name, payload: (True, b"")
        await until(lambda: link.session is not None)
        assert link.fault is None


async def test_a_token_that_was_replaced_on_the_host_is_taken_from_its_file_without_a_restart(tmp_path: Path) -> None:
    async with linked(tmp_path) as (host, link):
        host.answer = lambda name, payload: (
            (True, b"") if name == "ping" or json.loads(payload)["Token"] == "new" else (False, b"Unauthorized agent")
        )
        await until(lambda: link.fault is not None)
        (tmp_path / "of-cluster").write_text("new")
        await until(lambda: link.session is not None)


@pytest.mark.slow
async def test_a_host_that_falls_silent_is_left_and_dialled_again(tmp_path: Path) -> None:
    async with linked(tmp_path, ping_interval=0.25, dead_after=0.5) as (host, link):
        await until(lambda: link.session is not None)
        host.answer = lambda name, payload: None if name == "ping" else (True, b"")
        await until(lambda: link.fault is not None)
        assert link.fault is not None
        assert link.fault.code == "TWR222"
        assert "no answer to a ping within 0.25 s" in link.fault.message
        host.answer = lambda name, payload: (True, b"")
        await until(lambda: link.session is not None)


async def test_a_session_that_ends_is_a_fault_and_comes_back(tmp_path: Path) -> None:
    async with linked(tmp_path) as (host, link):
        await until(lambda: link.session is not None)
        host.links[0].abort("cut")
        await until(lambda: link.fault is not None)
        assert link.fault is not None
        assert link.fault.code == "TWR201"
        await until(lambda: link.session is not None and len(registered(host)) == 2)


async def test_draining_ends_in_a_moment_without_channels(tmp_path: Path) -> None:
    async with linked(tmp_path) as (_host, link):
        await until(lambda: link.session is not None)
        async with asyncio.timeout(30):
            await link.drain(30)
        link.close("the agent is stopping")
        await until(lambda: link.session is None)
