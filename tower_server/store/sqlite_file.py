"""Opens the one SQLite file: refuses what is not ours or newer than we are, and brings what is older up to date.

The file holds the tower's private keys: it is made 0600 before SQLite sees it, and set back to that when widened. What
somebody else has put in its place (a link, a file of theirs) is refused before a key is written to it, and so is a
directory where they could: SQLite writes its log into whatever file is there under the log's name.
Exclusive locking is the fence against a second server on the same state directory, and keeps the write-ahead log out of
shared memory: only one connection ever writes or checkpoints.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from certs.files import intruder, remove_leftovers
from daemon.faults import TowerError

APPLICATION_ID: Final = 0x54575231  # "TWR1"
LOCK_WAIT: Final = 1.0  # seconds: covers a predecessor that is just closing

MIGRATIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO meta VALUES ('revision', 0);
    CREATE TABLE records (
        kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, data TEXT NOT NULL, PRIMARY KEY (kind, name)
    ) STRICT, WITHOUT ROWID;
    """,
)


def open_database(path: Path, *, migrations: Sequence[str] = MIGRATIONS, migrate: bool = True) -> sqlite3.Connection:
    """A connection to the store's file, for the calling thread only; `TowerError` it says what is wrong with it.

    Without `migrate` the file stays as it is, for who only looks at it or puts another in its place. A server takes
    away what a restore that was killed left beside it: the whole state before, with the CA's keys.
    """
    _make_private(path)
    connection = None
    try:
        connection = sqlite3.connect(path, timeout=LOCK_WAIT, isolation_level=None)
        _prepare(connection, path, migrations, migrate=migrate)
        if migrate:
            remove_leftovers(path.parent)
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        _refuse_lockless(path)
        raise explain(error, path) from error
    except BaseException:
        if connection is not None:
            connection.close()
        raise
    return connection


def _make_private(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_intruders(path)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            owner = os.fstat(descriptor).st_uid
            if owner == os.geteuid():
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise TowerError(
                "TWR105",
                f"the store {path} is a symbolic link, which whoever made it can turn to another file",
                mend="set state_dir to the directory that holds the file itself, or move the file here",
            ) from error
        mend = f"let this user (uid {os.geteuid()}) write the directory {path.parent}, or set another state_dir"
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            mend = f"set state_dir to a directory: what stands in the way of {path.parent} is a file"
        elif error.errno == errno.EROFS:
            mend = f"mount what {path.parent} is on so that it can be written (the kernel's log says if it failed), or "
            mend += "set another state_dir"
        raise TowerError(
            "TWR105", f"the store {path} cannot be opened: {error.strerror or error}", mend=mend
        ) from error
    if owner != os.geteuid():
        raise TowerError(
            "TWR105",
            f"the store {path} belongs to uid {owner}, and this server runs as uid {os.geteuid()}",
            mend=f"run the server as its owner, or `chown` {path.parent} and what is in it to the server's user",
        )


def _refuse_intruders(path: Path) -> None:
    who = intruder(path.parent)
    if who:
        raise TowerError(
            "TWR105",
            f"the store {path} would lie open to another user: {who}",
            mend=f"`chown {os.geteuid()} {path.parent}` and `chmod go-w {path.parent}`, or set another state_dir; "
            "if a store was there before, its CA may be known: rotate it",
        )


def _refuse_lockless(path: Path) -> None:
    """SQLite takes a file system without locks for one where somebody else has them. Asked where no connection is open:
    closing a file gives up every lock that this process has on it."""
    try:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise TowerError(
                "TWR105",
                f"the store {path} cannot be locked ({os.strerror(error.errno)}): its file system has no locks, and "
                "two servers could write it",
                mend="set state_dir to a local disk, or have the lock service of the network file system run",
            ) from error


def _prepare(connection: sqlite3.Connection, path: Path, migrations: Sequence[str], *, migrate: bool) -> None:
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("BEGIN EXCLUSIVE")  # takes the lock now, so that a second server is refused at its start
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    schema = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    connection.execute("COMMIT")
    if tables and application != APPLICATION_ID:
        raise TowerError(
            "TWR105",
            f"{path} is an SQLite file of something else, not a tower store",
            mend="set another state_dir, or move the file away",
        )
    if schema > len(migrations):
        raise TowerError(
            "TWR106",
            f"the store {path} was written by a newer tower-server "
            f"(schema {schema}; this one knows up to {len(migrations)})",
            mend="run the newer tower-server, or restore the copy of the state directory made before the upgrade",
        )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # a token that was used stays used, also through a power cut
    problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise sqlite3.DatabaseError(f"database disk image is malformed: {problem}")
    for number, script in enumerate(migrations[schema:] if migrate else (), start=schema + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE; {script};"
            f" PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number}; COMMIT"
        )


def explain(error: sqlite3.Error, path: Path) -> TowerError:
    """What an SQLite error means to whoever runs the server."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return TowerError(
            "TWR107",
            f"the store {path} is held by another process",
            mend="stop the other tower-server that uses this state directory, or give this one a state_dir of its own",
        )
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
        return _unwritable(error, path, full=name.startswith("SQLITE_FULL"))
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or "malformed" in str(error):
        return TowerError(
            "TWR105",
            f"the store {path} is damaged: {error}",
            mend="stop the server, keep the file for analysis, and restore the state directory from its last copy",
        )
    return TowerError(
        "TWR105",
        f"the store {path} failed: {error}",
        mend=f"see that {path.parent} exists and can be written by this user (uid {os.geteuid()})",
    )


def _unwritable(error: sqlite3.Error, path: Path, *, full: bool) -> TowerError:
    """A disk that fails is mostly mounted read-only by the kernel, and to SQLite all of it is an I/O error."""
    said, mend = f"the store {path} cannot be written: {error}", f"make room on the file system of {path.parent}"
    if not full:
        mend += ", or where there is some see what the kernel says of its disk (`dmesg`)"
    try:
        if os.statvfs(path.parent).f_flag & os.ST_RDONLY:
            said += ", and its file system is mounted read-only"
            mend = (
                f"see in the kernel's log (`dmesg`) why, and mount what {path.parent} is on so that it can be written"
            )
    except OSError:
        pass  # it is not even there: the error as it is says so
    return TowerError("TWR105", said, mend=f"{mend}; the store works again as soon as it can be written")
