"""Lists of conditions, changed as Kubernetes' conventions ask: by type, and with a time that only a transition moves.

Each type has one writer, so a writer touches its own types and carries the others on as they are, order kept. Two
dialects: our own resource (metav1.Condition) and the Cluster of KubeSphere, which knows `lastUpdateTime` and no
`observedGeneration`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeGuard

Status = Literal["True", "False", "Unknown"]
MAX_MESSAGE: Final = 1024


@dataclass(frozen=True, slots=True)
class Condition:
    """What one type says now. `reason` is one CamelCase word."""

    type: str
    status: Status
    reason: str
    message: str = ""


def merged(held: object, ours: Iterable[Condition], *, now: str, generation: int | None = None) -> list[dict[str, Any]]:
    """`held` with our conditions in it. Equal to `held` when nothing of ours has changed.

    `now` is RFC 3339; `generation` is for metav1.Condition, None writes KubeSphere's form. What somebody has broken in
    `held` (not a list, an entry without a type, a type twice) is put right.
    """
    entries = [dict(each) for each in held if isinstance(each, Mapping) and each.get("type")] if _is_list(held) else []
    result: dict[str, dict[str, Any]] = {}
    for entry in entries:
        result.setdefault(str(entry["type"]), entry)
    for condition in ours:
        result[condition.type] = _entry(result.get(condition.type), condition, now=now, generation=generation)
    return list(result.values())


def find(held: object, kind: str) -> Mapping[str, Any] | None:
    """The condition of a type, or None."""
    if not _is_list(held):
        return None
    return next((each for each in held if isinstance(each, Mapping) and each.get("type") == kind), None)


def _is_list(held: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(held, Sequence) and not isinstance(held, (str, bytes))


def _entry(
    before: Mapping[str, Any] | None, condition: Condition, *, now: str, generation: int | None
) -> dict[str, Any]:
    said: dict[str, Any] = {
        "type": condition.type,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message[:MAX_MESSAGE],
    }
    if generation is not None:
        said["observedGeneration"] = generation
    if before is not None and all(before.get(key) == value for key, value in said.items()):
        return dict(before)
    same = before is not None and before.get("status") == condition.status and before.get("lastTransitionTime")
    said["lastTransitionTime"] = before["lastTransitionTime"] if same and before else now
    if generation is None:
        said["lastUpdateTime"] = now
    return said
