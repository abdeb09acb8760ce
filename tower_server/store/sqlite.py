"""The store of one machine: SQLite behind one connection in one worker thread.

Writes are serialised by that thread, committed with a full sync before they are acknowledged, and published to watchers
in commit order. A caller that goes away does not undo its write: the change is published all the same. Nothing is
written once the file was taken from its place: it would be acknowledged, and gone with this process.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from daemon.faults import TowerError
from daemon.log import get_logger
from daemon.units import format_bytes
from tower_server.store.base import (
    MAX_RECORD_BYTES,
    Change,
    ChangeType,
    Conflict,
    Data,
    Expired,
    Kind,
    Listing,
    NotFound,
    Record,
    Store,
    Version,
    check_name,
    encode,
)
from tower_server.store.changes import KEPT_CHANGES, ChangeLog
from tower_server.store.sqlite_file import explain, open_database

T = TypeVar("T")

log = get_logger(__name__)

OPERATION_DEADLINE: Final = 10.0  # seconds: a disk that takes longer is a fault to report, not to wait for
ROOM: Final = 2 * MAX_RECORD_BYTES  # the record, and the same again in the log before it
MAX_PENDING: Final = 1024  # operations waiting for the worker; more means the disk does not keep up


class SqliteStore(Store):
    """Make it with `await SqliteStore.open(path)`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, worker: ThreadPoolExecutor, log: ChangeLog) -> None:
        self._path, self.place = path, str(path.absolute())
        self._connection = connection
        self._worker = worker
        self._log = log
        self._file = _file(path)
        self._pending = 0
        self._closed = False

    @classmethod
    async def open(cls, path: Path, *, kept_changes: int = KEPT_CHANGES) -> SqliteStore:
        worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        loop = asyncio.get_running_loop()
        try:
            connection = await loop.run_in_executor(worker, open_database, path)
            revision = await loop.run_in_executor(worker, _revision, connection)
        except BaseException:
            worker.shutdown(wait=False)
            raise
        return cls(path, connection, worker, ChangeLog(revision, kept_changes))

    async def get(self, kind: Kind, name: str) -> Record:
        return await self._run(lambda: _get(self._connection, kind, name))

    async def list(self, kind: Kind, *, prefix: str = "") -> Listing:
        return await self._run(lambda: _list(self._connection, kind, prefix))

    def watch(self, kind: Kind, *, since: Version) -> AsyncIterator[Change]:
        try:
            position = int(since)
        except ValueError:
            raise Expired(f"version {since!r} is not of this store") from None
        return self._log.follow(kind, position)

    async def create(self, kind: Kind, name: str, data: Data) -> Record:
        check_name(kind, name)
        text = encode(kind, name, data)
        return (await self._write(lambda: _create(self._connection, kind, name, text))).record

    async def update(self, kind: Kind, name: str, data: Data, *, expect: Version) -> Record:
        text = encode(kind, name, data)
        return (await self._write(lambda: _update(self._connection, kind, name, text, expect))).record

    async def delete(self, kind: Kind, name: str, *, expect: Version | None = None) -> None:
        await self._write(lambda: _delete(self._connection, kind, name, expect))

    async def check(self) -> str:
        """Writes as much as a record may hold, and takes it away again: a full disk is read without a complaint."""
        said = await super().check()
        await self._run(self._in_place)
        await self._run(lambda: _try_to_write(self._connection))
        free = await self._run(lambda: _free(self._path.parent))
        if free < ROOM:  # the log has room of its own for a while, what it holds has none where it is to go
            left, needed = format_bytes(free), format_bytes(ROOM)
            raise TowerError(
                "TWR105",
                f"{left} are left to the store {self._path}, and a record takes up to {needed}",
                mend=f"make room on the file system of {self._path.parent}",
            )
        return f"{said}, takes writes, {format_bytes(free)} free"

    async def snapshot(self) -> bytes:
        return await self._run(self._connection.serialize)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._log.close()
        closing = asyncio.get_running_loop().run_in_executor(self._worker, self._connection.close)
        self._worker.shutdown(wait=False)
        try:
            async with asyncio.timeout(OPERATION_DEADLINE):
                await asyncio.shield(closing)
        except TimeoutError:  # what was acknowledged is on disk; a process that waits for it says what for
            error = self._too_slow(f"it could not be closed within {OPERATION_DEADLINE:g} s")
            log.error("store-not-closed", code=error.code, text=error.message, mend=error.mend)

    async def _write(self, operation: Callable[[], Change]) -> Change:
        def write() -> Change:
            self._in_place()
            return _transaction(self._connection, operation)

        return await self._run(write, self._publish)

    def _publish(self, change: Change) -> None:
        self._log.append(int(change.record.version), change)

    async def _run(self, operation: Callable[[], T], done: Callable[[T], None] | None = None) -> T:
        if self._closed:
            raise TowerError(
                "TWR105", f"the store {self._path} is closed", mend="the server is stopping; ask again when it runs"
            )
        if self._pending >= MAX_PENDING:
            raise self._too_slow(f"{self._pending} operations wait for it")
        self._pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._worker, operation)

        def settle(finished: asyncio.Future[T]) -> None:
            self._pending -= 1
            if not finished.cancelled() and finished.exception() is None and done is not None:
                done(finished.result())

        future.add_done_callback(settle)
        try:
            async with asyncio.timeout(OPERATION_DEADLINE):
                return await asyncio.shield(future)
        except sqlite3.Error as error:
            raise explain(error, self._path) from error
        except TimeoutError as error:
            raise self._too_slow(f"it has not answered for {OPERATION_DEADLINE:g} s") from error

    def _in_place(self) -> None:
        """Raises TowerError where the file in use is no longer the one that the next start will open."""
        if _file(self._path) == self._file:
            return
        raise TowerError(
            "TWR105",
            f"the store {self._path} was removed or replaced while this server has it open: what it writes would be "
            "lost with its process",
            mend="`tower-server backup FILE` now, while it runs, still has all of it; then stop it, and start it with "
            f"what is at {self._path}, or after `tower-server restore FILE --replace`",
        )

    def _too_slow(self, what: str) -> TowerError:
        return TowerError(
            "TWR105",
            f"the store {self._path} does not keep up: {what}",
            mend=f"look at the disk of {self._path.parent}: it is overloaded or failing",
        )


def _file(path: Path) -> tuple[int, int] | None:
    """Which file lies there; None for none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _try_to_write(connection: sqlite3.Connection) -> None:
    """No record: of a kind that nobody reads, and without a revision."""
    size = MAX_RECORD_BYTES // 2  # two digits a byte
    insert = f"INSERT OR REPLACE INTO records VALUES ('check', 'check', 0, hex(zeroblob({size})))"  # noqa: S608 - a constant
    _transaction(connection, lambda: connection.execute(insert).fetchall())
    _transaction(connection, lambda: connection.execute("DELETE FROM records WHERE kind = 'check'").fetchall())


def _record(kind: Kind, name: str, version: int, text: str) -> Record:
    data: dict[str, Any] = json.loads(text)
    return Record(kind, name, Version(str(version)), data)


def _revision(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT value FROM meta WHERE key = 'revision'").fetchone()[0])


def _next_revision(connection: sqlite3.Connection) -> int:
    # Fetched to the end: a half-read RETURNING would keep the transaction from committing.
    rows = connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'revision' RETURNING value").fetchall()
    return int(rows[0][0])


def _find(connection: sqlite3.Connection, kind: Kind, name: str) -> Record | None:
    row = connection.execute(
        "SELECT version, data FROM records WHERE kind = ? AND name = ?", (kind.value, name)
    ).fetchone()
    return _record(kind, name, row[0], row[1]) if row else None


def _get(connection: sqlite3.Connection, kind: Kind, name: str) -> Record:
    record = _find(connection, kind, name)
    if record is None:
        raise NotFound(kind, name)
    return record


def _list(connection: sqlite3.Connection, kind: Kind, prefix: str) -> Listing:
    # Every character that a name may hold lies below '{', so the range is the prefix and the key's index serves it.
    rows = connection.execute(
        "SELECT name, version, data FROM records WHERE kind = ? AND name >= ? AND name < ? ORDER BY name",
        (kind.value, prefix, prefix + "{"),
    ).fetchall()
    items = tuple(_record(kind, name, version, text) for name, version, text in rows)
    return Listing(items, Version(str(_revision(connection))))


def _transaction(connection: sqlite3.Connection, operation: Callable[[], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = operation()
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk may have rolled it back already
            connection.execute("ROLLBACK")
        raise
    return result


def _create(connection: sqlite3.Connection, kind: Kind, name: str, text: str) -> Change:
    if _find(connection, kind, name) is not None:
        raise Conflict(kind, name, "exists already")
    revision = _next_revision(connection)
    connection.execute("INSERT INTO records VALUES (?, ?, ?, ?)", (kind.value, name, revision, text))
    return Change(ChangeType.CREATED, _record(kind, name, revision, text))


def _update(connection: sqlite3.Connection, kind: Kind, name: str, text: str, expect: Version) -> Change:
    _expected(_get(connection, kind, name), expect)
    revision = _next_revision(connection)
    connection.execute(
        "UPDATE records SET version = ?, data = ? WHERE kind = ? AND name = ?", (revision, text, kind.value, name)
    )
    return Change(ChangeType.UPDATED, _record(kind, name, revision, text))


def _delete(connection: sqlite3.Connection, kind: Kind, name: str, expect: Version | None) -> Change:
    record = _get(connection, kind, name)
    if expect is not None:
        _expected(record, expect)
    revision = _next_revision(connection)
    connection.execute("DELETE FROM records WHERE kind = ? AND name = ?", (kind.value, name))
    return Change(ChangeType.DELETED, Record(kind, name, Version(str(revision)), record.data))


def _expected(record: Record, expect: Version) -> None:
    if record.version != expect:
        raise Conflict(record.kind, record.name, f"has version {record.version} by now, not {expect}")
