"""What a server does every ten seconds: renews and reloads certificates, takes over what other servers revoked, saves
what only memory holds, tidies up and counts.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from daemon.faults import TowerError
from daemon.log import get_logger
from daemon.metrics import STATES, ServerMetrics
from protocol.flow import Budget
from tower_server.assembly import Parts
from tower_server.revocation_sync import sync_revocations
from tower_server.servercert import FileCertificate

EVERY: Final = 10.0
TIDY_EVERY: Final = 3600.0

log = get_logger(__name__)


class Housekeeping:
    """`turn` again and again."""

    def __init__(self, parts: Parts, *, metrics: ServerMetrics, budget: Budget) -> None:
        self._parts = parts
        self._metrics = metrics
        self._budget = budget
        self._tidied = 0.0

    async def turn(self) -> None:
        """One round, and the pause after it. What needs the store comes last: it may be away for hours."""
        parts, services, now = self._parts, self._parts.services, time.time()
        if now >= parts.certificate.renew_at:
            parts.renew_certificate()
        if parts.replicas is not None and now >= parts.replicas.certificate.renew_at:
            parts.replicas.certificate.renew(at=now)
        _reload(parts.file_certificate)
        if parts.legacy is not None:
            parts.legacy.housekeeping()
        services.revocations.repeat(at=now)
        self._count()
        if parts.replicas is not None:
            await services.rotation.follow()
            await sync_revocations(services.revocations, services.registry, services.clusters.look)
        await services.clusters.save()
        if now - self._tidied > TIDY_EVERY:
            self._tidied = now
            await services.tokens.tidy()
            await services.agents.tidy()
        await asyncio.sleep(EVERY)

    def _count(self) -> None:
        metrics, parts, services = self._metrics, self._parts, self._parts.services
        states = [member.verdict.state for member in services.registry.members.values()]
        for state in STATES:
            metrics.clusters.labels(state).set(states.count(state))
        listening = [port.listening for port in parts.ports]
        metrics.ports.labels("caller", "listening").set(listening.count(True))
        metrics.ports.labels("caller", "unavailable").set(listening.count(False))
        metrics.buffer_bytes.set(self._budget.used)
        metrics.certificate_expiration.labels("server", "").set(parts.certificate.issued.not_after)
        root = services.authority.bundle.root.not_valid_after_utc.timestamp()
        metrics.certificate_expiration.labels("ca", "").set(root)


def _reload(certificate: FileCertificate | None) -> None:
    """Follows the operator's certificate; one that cannot be used leaves the one before in force."""
    try:
        if certificate is not None and certificate.reload():
            log.info("tunnel-certificate-reloaded")
    except TowerError as error:
        log.error("tunnel-certificate-unusable", code=error.code, text=error.message)
