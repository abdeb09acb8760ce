"""The agent's own look at its member: is the apiserver well, who is it, and does it still accept the agent.

It explains failures to the host; whether the cluster is Ready the host decides by requests of its own through the
tunnel. One task probes at a fixed interval; whoever wants the last result reads `latest` and nobody waits for it. What
failed is looked at again after a second, then after twice as long each time; a request that could not reach the
apiserver makes the next probe due at once, and however many of them there are, it stays one probe a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from daemon.faults import TowerError
from daemon.log import get_logger
from protocol import defaults
from tower_agent.member import MemberApi, readiness

FACTS_EVERY: Final = 60.0  # seconds between looks at what seldom changes: version, uid, nodes

T = TypeVar("T")

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Facts:
    """What seldom changes; None where the agent may not read it."""

    version: str | None = None
    uid: str | None = None
    nodes: int | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """One result. `fault` is None when the apiserver is ready; `at` is wall-clock time, `seconds` the request's."""

    ok: bool
    at: float
    seconds: float
    fault: TowerError | None
    facts: Facts

    def fields(self) -> dict[str, Any]:
        """As it stands in a status message."""
        return {
            "ready": self.ok,
            "at": self.at,
            "seconds": round(self.seconds, 4),
            "code": None if self.fault is None else self.fault.code,
            "reason": None if self.fault is None else self.fault.reason,
            "text": None if self.fault is None else self.fault.message,
            "version": self.facts.version,
            "uid": self.facts.uid,
            "nodes": self.facts.nodes,
        }


class Prober:
    """Probes until cancelled; `changed` is called after every probe."""

    def __init__(
        self, api: MemberApi, *, changed: Callable[[Probe], None], interval: float = defaults.PROBE_INTERVAL
    ) -> None:
        self.latest: Probe | None = None
        self._api = api
        self._changed = changed
        self._interval = interval
        self._facts = Facts()
        self._facts_at = float("-inf")
        self._suspected = asyncio.Event()
        self._failures = 0

    def suspect(self) -> None:
        """A caller's request could not reach the apiserver. That it is away already is nothing new."""
        if self.latest is None or self.latest.ok:
            self._suspected.set()

    async def run(self) -> None:
        """Probe at the interval; a failed probe is a result, not an error."""
        while True:
            self._suspected.clear()
            probe = await self.once()
            before, self.latest = self.latest, probe
            code = None if probe.fault is None else probe.fault.code
            if before is None or code != (None if before.fault is None else before.fault.code):
                if probe.fault is None:
                    log.info("apiserver-ready", address=self._api.access.address, version=probe.facts.version)
                else:
                    log.warning("apiserver-unwell", code=probe.fault.code, text=probe.fault.message)
            self._failures = 0 if probe.ok else self._failures + 1
            self._changed(probe)
            await self._until_due()

    async def _until_due(self) -> None:
        least = min(defaults.PROBE_AGAIN, self._interval)
        await asyncio.sleep(least)
        wait = min(self._interval, least * 2 ** min(self._failures - 1, 16)) if self._failures else self._interval
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait - least):
                await self._suspected.wait()

    async def once(self) -> Probe:
        """One probe, never raising: every failure is in the result."""
        started = time.monotonic()
        fault: TowerError | None = None
        try:
            ready = await readiness(self._api)
            if not ready.ok:
                fault = TowerError("TWR302", ready.text)
        except TowerError as error:
            fault = error
        seconds = time.monotonic() - started
        if fault is None and time.monotonic() - self._facts_at >= FACTS_EVERY:
            self._facts, self._facts_at = await self._look(), time.monotonic()
        return Probe(fault is None, time.time(), seconds, fault, self._facts)

    async def _look(self) -> Facts:
        """Each fact by itself: RBAC that forbids one must not hide the others."""
        version, namespace, nodes = await asyncio.gather(
            self._fact(self._api.json("GET", "/version")),
            self._fact(self._api.json("GET", "/api/v1/namespaces/kube-system")),
            self._fact(self._api.node_count()),
        )
        metadata = namespace.get("metadata") if namespace is not None else None
        return Facts(_string(version, "gitVersion"), _string(metadata, "uid"), nodes)

    async def _fact(self, asked: Awaitable[T]) -> T | None:
        try:
            return await asked
        except TowerError as error:
            log.debug("fact-not-readable", code=error.code, text=error.message)
            return None


def _string(document: Any, key: str) -> str | None:
    value = document.get(key) if isinstance(document, dict) else None
    return value if isinstance(value, str) else None
