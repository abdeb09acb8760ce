"""A server with the dialect enabled, a cluster with a token, callers of it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import time
from typing import Any

from certs.keys import generate_key, key_to_pem
from certs.tls import load_pair
from tests.tower_server.kit import Answer, Running, admin, call, caller_context, exchange, running
from tests.tower_server.legacy.goagent import TOKEN, Apiserver, GoAgent, apiserver, config_of
from tests.waiting import until
from tower_server.records import KUBESPHERE, Cluster
from tower_server.store.base import Kind

CLUSTER = "edge-1"


@dataclass
class Host:
    running: Running
    backend: Apiserver
    port: int
    agents: list[GoAgent]

    @property
    def member(self) -> Any:
        return self.running.member(CLUSTER)

    def config(self, **changes: Any) -> dict[str, Any]:
        return config_of(self.backend, CLUSTER, **changes)

    async def dialled(self, **more: Any) -> GoAgent:
        """An agent that has not said who it is."""
        agent = GoAgent(self.port)
        self.agents.append(agent)
        return await agent.dial(**more)

    async def registered(self, **changes: Any) -> GoAgent:
        agent = await self.dialled()
        count = len(self.member.tunnels)
        assert await agent.register(self.config(**changes)) == ""
        await until(lambda: len(self.member.tunnels) > count)
        return agent

    def context(
        self, user: str | None = "tower:hq:admin", groups: tuple[str, ...] = ("tower:hq:cluster-admins",)
    ) -> Any:
        context = caller_context(self.running)
        if user is not None:
            key = generate_key()
            authority = self.running.services.authority
            issued = authority.issue_client(user, groups, public_key=key.public_key(), at=time())
            load_pair(context, chain_pem=issued.chain_pem, key_pem=key_to_pem(key))
        return context

    async def ask(
        self, path: str, *headers: str, context: ssl.SSLContext | None = None, host: str = "", timeout: float = 30
    ) -> Answer:
        """One request at the cluster's port; by a certificate of the host's admin unless a context says otherwise."""
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1",
                self.running.port(CLUSTER),
                ssl=context or self.context(),
                server_hostname=host or f"{CLUSTER}.members.tower",
            )
        try:
            lines = "".join(f"{line}\r\n" for line in headers)
            return await exchange(reader, writer, f"GET {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
        finally:
            writer.transport.abort()

    async def admin(self, method: str, path: str, body: Any = None) -> Answer:
        return await admin(self.running, method, f"/v1/clusters/{CLUSTER}/{path}", body)

    async def view(self) -> dict[str, Any]:
        found: dict[str, Any] = (await admin(self.running, "GET", f"/v1/clusters/{CLUSTER}")).json()
        return found

    async def heard_of_record(self, **changes: Any) -> None:
        """Changes the cluster's record as a controller does, and has the server hear of it as its watch does."""
        store, clusters = self.running.services.store, self.running.services.clusters
        await until(lambda: KUBESPHERE in clusters.get(CLUSTER)[0].ports)  # what its agents have it write by itself
        record = await store.get(Kind.CLUSTER, CLUSTER)
        changed = replace(Cluster.read(record), **changes)
        await clusters._take(await store.update(Kind.CLUSTER, CLUSTER, changed.data(), expect=record.version))

    async def condition(self, kind: str) -> dict[str, Any]:
        return next((each for each in (await self.view())["conditions"] if each["type"] == kind), {})


@contextlib.asynccontextmanager
async def host(folder: Path, **settings: Any) -> AsyncIterator[Host]:
    dialect = {"enabled": True, "listen": "127.0.0.1:0", **settings.pop("kubesphere_v1", {})}
    async with apiserver(folder / "member") as backend, running(folder, kubesphere_v1=dialect, **settings) as server:
        found = Host(server, backend, int(server.services.legacy_address.rpartition(":")[2]), [])
        await server.add(CLUSTER)
        made = await found.admin("POST", "legacy-token", {"token": TOKEN})
        assert made.status == 201, made.body
        try:
            yield found
        finally:
            for agent in found.agents:
                await agent.end()


__all__ = ["CLUSTER", "TOKEN", "Answer", "GoAgent", "Host", "admin", "call", "host", "until"]
