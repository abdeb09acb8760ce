"""What another server of the host has revoked, heeded here: its list taken over, and what it names ended.

A server that revokes tells the others before its command returns; who was not heard then looks at the store by itself,
every ten seconds. Until it has, it would let in whom the host does not trust any more, and send agents a list with a
lower number than they have.
"""

from __future__ import annotations

from certs.revocation import ALL_AGENTS
from daemon.log import get_logger
from protocol.constants import Code
from tower_server.revocations import Revocations
from tower_server.tunnels import TunnelRegistry

log = get_logger(__name__)


async def heed(revocations: Revocations, registry: TunnelRegistry) -> None:
    """Takes over what others have written since, and closes the tunnels that stand on it."""
    before = await revocations.follow()
    if before is None:
        return
    now = revocations.current
    log.info("revocations-followed", number=now.number, before=before.number)
    for (cluster, agent), at in now.agents.items():
        if agent != ALL_AGENTS and before.agents.get((cluster, agent)) != at:  # a deleted cluster is followed as such
            registry.close_agent(cluster, agent, code=Code.REVOKED, text=f"the agent {agent} was revoked")
    for serial in now.serials.keys() - before.serials.keys():
        registry.close_serial(serial)
