"""Looks up what a native agent would report of its member and a Go agent does not: the version, the uid of its
kube-system namespace, the number of nodes. Uses the shipped credential; what that may not read stays unknown.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from gateway.upstream import Pool
from tower_server.legacy.asking import NotAnswered, ask

EVERY: Final = 60.0  # seconds, as an agent looks at what seldom changes
_METADATA: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


async def read_facts(pool: Pool) -> dict[str, Any]:
    """Each by itself: RBAC that forbids one must not hide the others. Keys of what is not known are left out."""
    version, namespace, nodes = await asyncio.gather(
        _object(pool, "/version"),
        _object(pool, "/api/v1/namespaces/kube-system"),
        _object(pool, "/api/v1/nodes?limit=1", accept=_METADATA),
    )
    metadata = namespace.get("metadata")
    found = {"version": version.get("gitVersion"), "uid": metadata.get("uid") if isinstance(metadata, dict) else None}
    facts: dict[str, Any] = {key: value for key, value in found.items() if isinstance(value, str)}
    items, listed = nodes.get("items"), nodes.get("metadata")
    if isinstance(items, list) and isinstance(listed, dict):
        left = listed.get("remainingItemCount")
        facts["nodes"] = len(items) + (left if isinstance(left, int) else 0)
    return facts


async def _object(pool: Pool, path: str, *, accept: str = "application/json") -> dict[str, Any]:
    try:
        answer = await ask(pool, "GET", path, accept=accept)
    except NotAnswered:
        return {}  # the probe says why the apiserver cannot be asked
    return answer.object() if answer.status == 200 else {}
