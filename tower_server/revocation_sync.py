"""Puts into effect here what another server of this host has revoked: reads its list and closes the tunnels it names.

A server that revokes tells the others before its command returns. One that could not be told finds the new list in the
store within ten seconds; until then it would still admit whoever was revoked, and send agents a list with a lower
number than the one they have.
"""

from __future__ import annotations

from certs.revocation import ALL_AGENTS
from daemon.log import get_logger
from protocol.constants import Code
from tower_server.revocations import Revocations
from tower_server.tunnels import TunnelRegistry

log = get_logger(__name__)


async def sync_revocations(revocations: Revocations, registry: TunnelRegistry) -> None:
    """Reads the list if it has changed in the store, and closes the tunnels of whoever is newly revoked."""
    before = await revocations.follow()
    if before is None:
        return
    now = revocations.current
    log.info("revocations-followed", number=now.number, before=before.number)
    for (cluster, agent), at in now.agents.items():
        if agent != ALL_AGENTS and before.agents.get((cluster, agent)) != at:  # all: of a cluster whose record went too
            registry.close_agent(cluster, agent, code=Code.REVOKED, text=f"the agent {agent} was revoked")
    for serial in now.serials.keys() - before.serials.keys():
        registry.close_serial(serial)
