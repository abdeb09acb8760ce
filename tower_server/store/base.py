"""What every store offers: records with a version, changed only by who has seen the version they change.

Invariants that the conformance suite holds for each implementation:
- `create` is the only uniqueness there is: of many creators of one (kind, name) exactly one succeeds, the others get
  `Conflict`.
- A write that returned is durable; a used token stays used through a power cut.
- A version may be handed back (`expect`, `since`) and asked whether it is `later` than another; it is opaque else.
- `watch(since=v)` yields every change after `v` in order, or raises `Expired`, at once or later, when it can no longer
  do so (too old, or the reader too slow): the caller lists anew. It never skips one silently.
"""

from __future__ import annotations

import enum
import json
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NewType

from daemon.faults import TowerError
from daemon.units import format_count

Version = NewType("Version", str)
Data = Mapping[str, Any]

# What Kubernetes accepts as an object name, so that every implementation can hold every record.
NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
MAX_RECORD_BYTES: Final = (
    512 * 1024
)  # a Secret or a custom resource holds about 1 MiB; half of it leaves room for metadata


class Kind(enum.StrEnum):
    """The kinds of records."""

    CLUSTER = "cluster"
    CLAIM = "claim"
    TOKEN = "token"  # noqa: S105 - the kind's name
    AGENT = "agent"
    REVOCATION = "revocation"
    SECRET = "secret"  # noqa: S105 - the kind's name


class StoreError(Exception):
    """The root of what a store raises."""


class Conflict(StoreError):
    """The record exists already (create), or has another version than the one expected (update, delete)."""

    def __init__(self, kind: Kind, name: str, text: str) -> None:
        super().__init__(f"{kind} {name!r}: {text}")
        self.kind, self.name = kind, name


class NotFound(StoreError):
    """There is no such record."""

    def __init__(self, kind: Kind, name: str) -> None:
        super().__init__(f"{kind} {name!r} does not exist")
        self.kind, self.name = kind, name


class Expired(StoreError):
    """A watch can no longer tell every change since its version: list anew."""


class Invalid(StoreError):
    """The name or the data cannot be stored."""


def later(one: Version, other: Version) -> bool:
    """Whether `one` was given out after `other`; both of one store and kind. SQLite numbers its writes, and Kubernetes
    has promised since 1.35 what etcd always gave: resource versions are whole numbers that grow."""
    return int(one) > int(other)


@dataclass(frozen=True, slots=True)
class Record:
    kind: Kind
    name: str
    version: Version
    data: Data


@dataclass(frozen=True, slots=True)
class Listing:
    """Records ordered by name, and the version to watch from without missing a change."""

    items: tuple[Record, ...]
    version: Version


class ChangeType(enum.StrEnum):
    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Change:
    """One change; a deletion carries the last data and the version of the deletion."""

    type: ChangeType
    record: Record


class Store(ABC):
    """Records by (kind, name). They raise `StoreError`, and `daemon.faults.TowerError` when the store itself fails."""

    place = ""
    """The file that it is kept in, if it is one: who asks for a copy is told of what."""

    @abstractmethod
    async def get(self, kind: Kind, name: str) -> Record:
        """The record, or `NotFound`."""

    @abstractmethod
    async def list(self, kind: Kind, *, prefix: str = "") -> Listing:
        """All records of a kind whose names begin with `prefix`, ordered by name."""

    @abstractmethod
    def watch(self, kind: Kind, *, since: Version) -> AsyncIterator[Change]:
        """Every change after `since`, then those to come, or `Expired`. Close it with `aclose()`."""

    @abstractmethod
    async def create(self, kind: Kind, name: str, data: Data) -> Record:
        """A new record, or `Conflict` when there is one of that name."""

    @abstractmethod
    async def update(self, kind: Kind, name: str, data: Data, *, expect: Version) -> Record:
        """The record with new data, or `Conflict` when its version is not `expect`, `NotFound` when it is gone."""

    @abstractmethod
    async def delete(self, kind: Kind, name: str, *, expect: Version | None = None) -> None:
        """Takes the record away, or `NotFound`, or `Conflict` when its version is not `expect` (None: any)."""

    async def check(self) -> str:
        """What works, in words; `TowerError` for what does not. Here: it can be read."""
        return f"answers, {format_count(len((await self.list(Kind.CLUSTER)).items), 'cluster')}"

    async def snapshot(self) -> bytes:
        """The whole state of one moment as a file, `TowerError` where the store is kept by something else."""
        raise TowerError(
            "TWR605",
            "this server keeps its state in a store that is backed up by other means",
            mend="back up the cluster that holds it (etcd, or the objects in the server's namespace)",
        )

    @abstractmethod
    async def close(self) -> None:
        """Ends every watch and frees what is held. Idempotent."""


def check_name(kind: Kind, name: str) -> str:
    if not NAME.fullmatch(name):
        raise Invalid(
            f"{kind} name {name!r}: at most 253 lower-case letters, digits, '-' and '.', not '-' or '.' at an end"
        )
    return name


def encode(kind: Kind, name: str, data: Data) -> str:
    """The data as JSON, the same text for the same data; Invalid when no store may hold that much."""
    text = json.dumps(data, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    if len(text.encode()) > MAX_RECORD_BYTES:
        raise Invalid(f"{kind} {name!r}: {len(text.encode())} bytes of data; a record holds at most {MAX_RECORD_BYTES}")
    return text
