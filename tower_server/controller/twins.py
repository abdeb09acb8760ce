"""Which clusters say of themselves that they are the same member: by the uid of their kube-system namespace."""

from __future__ import annotations

from collections.abc import Callable


class Twins:
    """`poke(name)` asks for another look at a cluster whose twin has appeared or gone."""

    def __init__(self, poke: Callable[[str], None]) -> None:
        self._poke = poke
        self._uid: dict[str, str] = {}
        self._names: dict[str, set[str]] = {}

    def note(self, name: str, uid: str) -> list[str]:
        """What `name` says of itself now (empty: nothing). The others that say the same, in order."""
        before = self._uid.get(name, "")
        if uid != before:
            self._leave(name, before)
            if uid:
                self._uid[name] = uid
                self._names.setdefault(uid, set()).add(name)
                for other in self._names[uid] - {name}:
                    self._poke(other)
        return sorted(self._names.get(uid, set()) - {name}) if uid else []

    def _leave(self, name: str, uid: str) -> None:
        self._uid.pop(name, None)
        names = self._names.get(uid, set())
        names.discard(name)
        for other in names:
            self._poke(other)
        if not names:
            self._names.pop(uid, None)
