"""Decides whether a Go agent is let in: by its cluster's record, and then by what it sent.

An unknown name and a wrong token cannot be told apart, neither by the message nor by the time it takes. Only name and
token are parsed before the token is known to be right; an agent that has not shown that leaves no more than a line in
the history. A Go agent that is refused comes again after a back-off of up to two minutes: so while the records of
clusters may still have to be made, whoever is not known waits a moment for that, whatever name it says.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import replace
from typing import Final

from certs.token import hash_secret, secret_matches
from daemon.faults import TowerError
from protocol.defaults import HANDSHAKE_DEADLINE, KIB
from tower_server.agents import Agents
from tower_server.clusters import Clusters
from tower_server.legacy.registration import Claim, Registration, RegistrationError, read_claim, read_registration
from tower_server.legacy.serving import Shown
from tower_server.legacy.tunnel import AGENT
from tower_server.member import is_legacy
from tower_server.records import Agent, Cluster
from tower_server.tunnels import MAX_OF_AGENT

_NOBODYS: Final = hash_secret("")  # compared with where there is nothing to compare with
WAITS: Final = 0.7 * HANDSHAKE_DEADLINE  # seconds for a record that is on its way; the place was its own that long
MAX_WAITING: Final = 32 * KIB  # bytes of a payload that waits: a pod's has far less


class Registrar:
    """`register` one agent at a time; it keeps nothing."""

    def __init__(self, clusters: Clusters, agents: Agents) -> None:
        self._clusters = clusters
        self._agents = agents

    async def register(self, payload: bytes, remote: str) -> Registration:
        """TowerError TWR221, TWR240, TWR241 or TWR242 refuses."""
        try:
            claim = read_claim(payload)
        except RegistrationError as error:
            raise TowerError("TWR242", str(error)) from error
        known = self._known(claim)
        if known is None and self._clusters.settling and len(payload) <= MAX_WAITING:
            known = await self._awaited(claim)
        cluster = self._record(claim.name)
        if known is None or cluster is None:
            unknown = TowerError("TWR240", "Unauthorized agent: the cluster's name or its token is not known here")
            if cluster is not None:
                self._note(cluster, remote, unknown, proven=False)
            raise unknown
        try:
            await self._check_window(cluster)
            self._check_room(cluster)
            return replace(self._read(claim), token_hash=known)
        except TowerError as error:
            self._note(cluster, remote, error, proven=True)
            raise

    def _known(self, claim: Claim) -> str | None:
        """The cluster's token, as its hash, where the agent has it."""
        cluster = self._record(claim.name)
        known = cluster.legacy_token if cluster is not None else None
        return known if secret_matches(claim.token, known or _NOBODYS) else None

    async def _awaited(self, claim: Claim) -> str | None:
        """The same, as soon as a record says so; None when none does in time."""
        changed = asyncio.Event()
        unsubscribe = self._clusters.subscribe(lambda _change, name: changed.set() if name == claim.name else None)
        try:
            async with asyncio.timeout(WAITS):
                while (known := self._known(claim)) is None:
                    changed.clear()
                    await changed.wait()
                return known
        except TimeoutError:
            return None
        finally:
            unsubscribe()

    def _record(self, name: str) -> Cluster | None:
        try:
            return self._clusters.get(name)[0]
        except TowerError:
            return None

    def _note(self, cluster: Cluster, remote: str, error: TowerError, *, proven: bool) -> None:
        _, member = self._clusters.get(cluster.name)
        member.refuse(AGENT, remote, error.code, error.message, proven=proven)

    async def _check_window(self, cluster: Cluster) -> None:
        if cluster.legacy_until is not None and time.time() < cluster.legacy_until:
            return
        agents = await self._agents.list(cluster.name)
        if any(_good(agent, cluster) for agent in agents):
            raise TowerError(
                "TWR241",
                f"cluster {cluster.name} has native agents, and no window is open for a Go agent beside them",
            ).about(cluster.name)

    def _check_room(self, cluster: Cluster) -> None:
        """Who has the token may not have tunnels without number: each takes memory and a descriptor from everybody."""
        _, member = self._clusters.get(cluster.name)
        count = sum(is_legacy(each) for each in member.tunnels)
        if count >= MAX_OF_AGENT:
            raise TowerError(
                "TWR221",
                f"cluster {cluster.name} has {count} tunnels of Go agents, and {MAX_OF_AGENT} are the most",
                mend=f"stop the agents that are too many: `towerctl get tunnels {cluster.name}` shows where they are",
            )

    @staticmethod
    def _read(claim: Claim) -> Registration:
        try:
            registration = read_registration(claim)
            Shown.of(registration.kubernetes, registration.credential)  # before the agent is told that it is in
        except RegistrationError as error:
            raise TowerError("TWR242", str(error)) from error
        except (ssl.SSLError, ValueError, OSError) as error:
            why = getattr(error, "reason", None) or type(error).__name__
            raise TowerError("TWR242", f"OpenSSL cannot use what CAData, CertData and KeyData hold: {why}") from error
        return registration


def _good(agent: Agent, cluster: Cluster) -> bool:
    return agent.uid == cluster.uid and agent.revoked is None
