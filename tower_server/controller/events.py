"""Kubernetes Events: one for each transition that somebody would look for, in `kubectl describe` of what it is about.

Best effort by design: an Event that cannot be written is logged and forgotten, and nothing waits for one. Repeats cost
nothing, since what did not change makes no Event.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, Final

from daemon.faults import TowerError
from daemon.kube.client import Client
from daemon.kube.resources import EVENTS, Object
from daemon.log import get_logger
from tower_server.controller.conditions import Condition, find
from tower_server.controller.names import MANAGER

NAMESPACE: Final = "default"  # where Events about cluster-wide objects belong
MAX_NOTE: Final = 1024
_QUIET: Final = frozenset({"NotSeen", "NotAllocated", "NotInitialized", "NotWritten", "NotLooked", "Joining"})
_BEGINNINGS: Final = frozenset({"NeverConnected", "Waiting"})  # so begins every cluster; later each is worth a word

log = get_logger(__name__)


def transitions(held: object, now: Sequence[Condition]) -> list[Condition]:
    """The conditions that are worth an Event: turned, or false for another reason. A first good word is none."""
    worth = []
    for condition in now:
        before = find(held, condition.type)
        if condition.reason in _QUIET or (
            before is None and (condition.status != "False" or condition.reason in _BEGINNINGS)
        ):
            continue
        if (
            before is None
            or before.get("status") != condition.status
            or (condition.status == "False" and before.get("reason") != condition.reason)
        ):
            worth.append(condition)
    return worth


class Events:
    """Writes Events in the name of one server."""

    def __init__(self, client: Client, *, instance: str) -> None:
        self._client = client
        self._instance = instance

    async def tell(self, about: Object, conditions: Iterable[Condition]) -> None:
        for condition in conditions:
            try:
                await self._client.create(EVENTS, self._event(about, condition), field_manager=MANAGER)
            except TowerError as error:
                log.warning("event-not-written", reason=condition.reason, code=error.code, text=error.message)
                return

    def _event(self, about: Object, condition: Condition) -> Object:
        metadata = about["metadata"]
        now = dt.datetime.now(dt.UTC)
        reference: dict[str, Any] = {
            "apiVersion": about.get("apiVersion"),
            "kind": about.get("kind"),
            "name": metadata["name"],
            "uid": metadata.get("uid", ""),
            "resourceVersion": metadata.get("resourceVersion", ""),
        }
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name'][:200]}.{secrets.token_hex(8)}", "namespace": NAMESPACE},
            "involvedObject": reference,
            "type": "Normal" if condition.status == "True" else "Warning",
            "reason": condition.reason,
            "message": f"{condition.type} {condition.status}: {condition.message}"[:MAX_NOTE],
            "source": {"component": MANAGER, "host": self._instance},
            "reportingComponent": MANAGER,
            "reportingInstance": self._instance,
            "firstTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lastTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "count": 1,
        }
