"""Puts into effect here what another server of this host has revoked: reads its list and closes the tunnels it names.

A server that revokes tells the others before its command returns. One that could not be told finds the new list in the
store within ten seconds; until then it would still admit whoever was revoked, and send agents a list with a lower
number than the one they have.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from certs.revocation import ALL_AGENTS
from daemon.log import get_logger
from protocol.constants import Code
from tower_server.revocations import Revocations
from tower_server.tunnels import TunnelRegistry

log = get_logger(__name__)


async def sync_revocations(
    revocations: Revocations, registry: TunnelRegistry, look: Callable[[str], Awaitable[None]]
) -> None:
    """Reads the list if it has changed in the store, and closes the tunnels of whoever is newly revoked. All agents of
    a cluster are where it was deleted: `look` reads whether it was, since the watch may tell of that minutes later."""
    before = await revocations.follow()
    if before is None:
        return
    now = revocations.current
    log.info("revocations-followed", number=now.number, before=before.number)
    new = [who for who, at in now.agents.items() if before.agents.get(who) != at]
    for cluster, agent in new:
        if agent != ALL_AGENTS:
            registry.close_agent(cluster, agent, code=Code.REVOKED, text=f"the agent {agent} was revoked")
    for serial in now.serials.keys() - before.serials.keys():
        registry.close_serial(serial)
    for cluster, agent in new:
        if agent == ALL_AGENTS and cluster in registry.members:
            await look(cluster)
