"""A member with an apiserver of its own, and agents that serve it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from certs.identity_files import DirectoryIdentityStore
from daemon.kube.access import Access
from daemon.metrics import AgentMetrics
from gateway.policy import Policy
from protocol.flow import Budget
from tests.tower_agent.backend import Backend, Pki, Request, backend, write_kubeconfig
from tests.tower_agent.tower import Tower, state_dir
from tower_agent.config import AgentConfig
from tower_agent.enrol import Enrolment
from tower_agent.host import AgentContext, HostAgent
from tower_agent.trust import HostTrust
from tower_agent.wayout import WayOut


def echo_identity(request: Request) -> tuple[int, object]:
    """An apiserver that answers with who it took the caller for."""
    return 200, {
        "user": request.headers.get("impersonate-user"),
        "authorization": request.headers.get("authorization"),
        "client": request.client,
        "path": request.path,
    }


@dataclass
class Member:
    """A member's side of things in one test."""

    folder: Path
    pki: Pki
    apiserver: Backend
    kubeconfig: Path
    agents: list[HostAgent] = field(default_factory=list)
    metrics: AgentMetrics = field(default_factory=lambda: AgentMetrics(version="test"))
    unreachable: list[str] = field(default_factory=list)
    """The host of each request that found no apiserver."""

    async def agent(self, tower: Tower, *, policy: Policy | None = None, **settings: Any) -> HostAgent:
        """Join `tower` and serve it until the test is over."""
        folder = self.folder / f"state-{tower.host}"
        if not folder.exists():
            state_dir(self.folder, folder.name)
            await Enrolment(str(tower.token()), store=DirectoryIdentityStore(folder), way=WayOut()).run()
        config = AgentConfig(kubeconfig=self.kubeconfig, state_dir=folder, **settings)
        trust = await HostTrust.load(DirectoryIdentityStore(folder), tower.host)
        context = AgentContext(
            config=config,
            access=Access.find(self.kubeconfig),
            metrics=self.metrics,
            budget=Budget(1 << 26),
            instance=f"test-{len(self.agents)}",
            version="test",
            probe_fields=lambda: {"ready": True, "version": "v1.35.4", "uid": "4be1", "nodes": 3},
            unreachable=lambda: self.unreachable.append(tower.host),
        )
        agent = HostAgent(trust, policy or Policy.default(tower.host), context)
        self.agents.append(agent)
        agent.start()
        return agent


MakeMember = Callable[[], Any]


@pytest.fixture
def make_member(tmp_path: Path) -> MakeMember:
    """A member whose agent works by a client certificate (`token=True`: by a token too)."""

    @asynccontextmanager
    async def member(*, respond: Any = echo_identity) -> AsyncIterator[Member]:
        import base64

        pki = Pki(tmp_path)
        async with backend(respond, pki.server) as served:
            user = {
                "client-certificate-data": base64.b64encode(pki.client_pem).decode(),
                "client-key-data": base64.b64encode(pki.client_key).decode(),
            }
            file = write_kubeconfig(tmp_path / "kubeconfig", f"https://127.0.0.1:{served.port}", pki.ca_pem, user)
            made = Member(tmp_path, pki, served, file)
            try:
                yield made
            finally:
                for agent in made.agents:
                    await agent.close("the test is over")
                await asyncio.sleep(0.05)

    return member
