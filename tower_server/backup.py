"""`tower-server backup` and `restore`: the whole state as one SQLite file, the tower CA with its keys in it.

A running server holds its file exclusively, so it is asked for the copy, over its admin socket; without a server the
file itself is read, under the same lock and as it is: an upgrade of it is the server's. Either way the copy is of one
moment. Restoring needs the lock too, so it cannot happen beneath a server, and it replaces a store only on request,
after putting that aside.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from certs.files import is_there, read_file, replace_file
from daemon.faults import TowerError
from daemon.unixhttp import UnixConnection
from protocol.jsontext import parse_json
from tower_server.authority import RECORD
from tower_server.store.base import Kind
from tower_server.store.place import PLACE_HEADER
from tower_server.store.sqlite_file import APPLICATION_ID, MIGRATIONS, explain, open_database

DEADLINE: Final = 60.0
MAX_BYTES: Final = 1 << 30  # a thousand clusters take a few MiB; what is larger is something else
MAX_ERROR: Final = 64 * 1024
_MAGIC: Final = b"SQLite format 3\0"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a copy holds, for the person who is about to rely on it."""

    schema: int
    counts: dict[str, int]

    def __str__(self) -> str:
        clusters, agents = self.counts.get(Kind.CLUSTER, 0), self.counts.get(Kind.AGENT, 0)
        return f"{clusters} cluster{'s' * (clusters != 1)}, {agents} agent{'s' * (agents != 1)}"


def snapshot(database: Path, admin_socket: Path, *, named: bool = False) -> bytes:
    """The state as of now: where somebody `named` it the one in `database`, also while another's server answers.

    Raises TowerError TWR104, TWR105, TWR107 or what the server refused with.
    """
    try:
        data, place = _ask(str(admin_socket))
        if named and place and Path(place).resolve() != database.resolve():
            data = _read(database, f"the server at {admin_socket} keeps its own in {place}")
    except (FileNotFoundError, ConnectionRefusedError):
        data = _read(database, f"no server answers at {admin_socket}")
    except (OSError, http.client.HTTPException) as error:
        raise TowerError(
            "TWR602",
            f"the server at {admin_socket} did not give its state: {str(error) or type(error).__name__}",
            mend="run this as the server's user, with the server's configuration (--config), and look at its log",
        ) from error
    inspect(data, f"the copy of {database}")
    return data


def _ask(path: str) -> tuple[bytes, str]:
    """The server's state, and where it lies."""
    connection = UnixConnection(path, DEADLINE)
    with contextlib.closing(connection):
        connection.request("GET", "/v1/backup")
        response = connection.getresponse()
        if response.status != 200:
            raise _refusal(response.status, response.read(MAX_ERROR))
        data = response.read(MAX_BYTES)
        if response.length:
            raise http.client.IncompleteRead(data, response.length)
        return data, unquote(response.headers.get(PLACE_HEADER, ""))


def _refusal(status: int, body: bytes) -> TowerError:
    try:
        said = parse_json(body)
        return TowerError(said["code"], said["message"], mend=said["mend"])
    except (ValueError, KeyError, TypeError):
        return TowerError("TWR602", f"the server answered {status} when it was asked for its state")


def _read(database: Path, other: str) -> bytes:
    """The file itself, which no server holds; `other` says why none was asked."""
    if not is_there(database):
        raise TowerError(
            "TWR104",
            f"there is no store at {database}, and {other}",
            mend="name the server's configuration with --config, or its state directory with --state-dir",
        )
    try:
        with _locked(database) as connection:
            return connection.serialize()
    except TowerError as error:
        if error.code != "TWR107":
            raise
        raise TowerError(
            "TWR107",
            f"{error.message}, and {other}",
            mend="name the server that holds it by its configuration (--config) or its socket (TOWER_ADMIN_SOCKET)",
        ) from error


@contextlib.contextmanager
def _locked(database: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(open_database(database, migrate=False)) as connection:
        try:
            yield connection
        except sqlite3.Error as error:
            raise explain(error, database) from error


def inspect(data: bytes, what: str) -> Contents:
    """What is in a copy. Raises TowerError: TWR104 for what is none or is damaged, TWR106 for a newer one."""
    broken = TowerError(
        "TWR104", f"{what} is not the state of a tower server", mend="use a file that `tower-server backup` wrote"
    )
    if not data.startswith(_MAGIC):
        raise broken
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        try:
            connection.deserialize(_unjournaled(data))
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            schema = int(connection.execute("PRAGMA user_version").fetchone()[0])
            problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if application != APPLICATION_ID:
                raise broken
            if problem != "ok":
                raise TowerError("TWR104", f"{what} is damaged: {problem}", mend="use an older copy")
            if schema > len(MIGRATIONS):
                raise TowerError(
                    "TWR106",
                    f"{what} was written by a newer tower-server (schema {schema}; this one knows {len(MIGRATIONS)})",
                    mend="restore it with the newer tower-server",
                )
            rows = connection.execute("SELECT kind, count(*) FROM records GROUP BY kind").fetchall()
        except sqlite3.Error as error:
            raise TowerError("TWR104", f"{what} cannot be read: {error}", mend="use an older copy") from error
    return Contents(schema, {str(kind): int(count) for kind, count in rows})


def _unjournaled(data: bytes) -> bytes:
    """The same database, marked as one without write-ahead log (bytes 18 and 19 of the header): a copy in memory has
    none, and SQLite would refuse to open it."""
    return data[:18] + b"\x01\x01" + data[20:]


def write(data: bytes, target: Path, *, replace: bool) -> None:
    """Keeps the copy in a file of mode 0600. Raises TowerError TWR104."""
    if os.path.exists(target) and not replace:  # whatever keeps us from looking keeps us from writing, and says so
        raise TowerError("TWR104", f"{target} exists already", mend="name another file, or add --overwrite")
    try:
        replace_file(target, data)
    except OSError as error:
        raise TowerError(
            "TWR104",
            f"the copy cannot be written to {target}: {error.strerror or error}",
            mend="name a file in a directory that exists, that this user may write, and that has room",
        ) from error


def read_copy(source: Path) -> bytes:
    """A copy from a file. Raises TowerError TWR104."""
    try:
        return read_file(source, MAX_BYTES)
    except OSError as error:
        raise TowerError(
            "TWR104", f"{source} cannot be read: {error.strerror or error}", mend="name the copy that backup wrote"
        ) from error


def restore(data: bytes, database: Path, *, replace: bool) -> tuple[Contents, Path | None, list[str]]:
    """Makes the copy the state of the next server; also where the state before was put, if there was one, and what has
    to be done again.

    Raises TowerError: TWR107 while a server runs, TWR104 where a state is there and `replace` is not.
    """
    contents = inspect(data, "the copy")
    aside, since = None, list[str]()
    with _locked(database) as connection:
        if _holds_records(connection):
            there = inspect(connection.serialize(), str(database))
            if not replace:
                raise TowerError(
                    "TWR104",
                    f"{database} holds a state already ({there})",
                    mend="add --replace to put it aside, or name another directory with --state-dir",
                )
            aside = database.with_name(f"{database.name}.{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
            write(connection.serialize(), aside, replace=False)
        with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
            copy.deserialize(_unjournaled(data))
            if aside is not None:
                since = _done_since(_summary(copy), _summary(connection))
            _renumber(copy)
            _void_tokens(copy)
            copy.backup(connection)
    return contents, aside, since


@dataclass(frozen=True, slots=True)
class _Summary:
    """What operators and members have done; the uid tells a cluster, and its agents, from another of its name."""

    clusters: set[tuple[str, str]]
    agents: set[tuple[str, str]]
    revoked: set[str]


def _summary(state: sqlite3.Connection) -> _Summary:
    """A record that is damaged counts by its name: the state that is replaced may be just that."""
    found = _Summary(set(), set(), set())
    for kind, name, text in state.execute("SELECT kind, name, data FROM records").fetchall():
        try:
            kept = parse_json(text)
            if kind == Kind.CLUSTER:
                found.clusters.add((name, kept["uid"]))
            elif kind == Kind.AGENT:
                found.agents.add((name.replace(".", "/"), kept["uid"]))
                found.revoked.update({f"agent {name.replace('.', '/')}"} if kept.get("revoked") else ())
            elif kind == Kind.REVOCATION:
                found.revoked.update(f"caller {user}" for user, _ in kept["users"])
                found.revoked.update(f"certificate {serial}" for serial, _ in kept["serials"])
        except (ValueError, TypeError, KeyError, AttributeError):
            continue  # `_void_tokens` and the next start say what they cannot do without
    return found


def _done_since(copy: _Summary, there: _Summary) -> list[str]:
    """What was done between the copy and the state that it replaces, a sentence each with what to do about it."""
    added = {name for name, _ in there.clusters - copy.clusters}
    joined = {name for name, _ in there.agents - copy.agents if name.partition("/")[0] not in added}
    said = (
        ({name for name, _ in copy.clusters - there.clusters}, "deleted since, and there again: delete it again"),
        (added, "added since: `towerctl add cluster`, and the member joins again"),
        (joined, "joined since, and will be refused: join again with a new token"),
        (there.revoked - copy.revoked, "revoked since, and not in the copy: revoke it again"),
    )
    return [f"{', '.join(sorted(names))}: {what}" for names, what in said if names]


def _holds_records(connection: sqlite3.Connection) -> bool:
    made = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'records'").fetchone()
    return made is not None and connection.execute("SELECT 1 FROM records").fetchone() is not None


def _renumber(copy: sqlite3.Connection) -> None:
    """Makes the CA of the copy later than any state of it that agents have heard of: its number is otherwise that of
    another one, or lower, and they would refuse it for as long. The time is above every count of steps."""

    def later(name: str, kept: dict[str, Any]) -> None:
        if name == RECORD:
            kept["number"] = max(int(kept.get("number", 1)) + 1, int(time.time()))

    _rewrite(copy, Kind.SECRET, "the CA", later)


def _void_tokens(copy: sqlite3.Connection) -> None:
    """Revokes what could let in somebody else: which of them were used since the copy was made, nobody knows."""

    def void(_: str, token: dict[str, Any]) -> None:
        if token.get("revoked") is None and len(token.get("keys", {})) < token["uses"]:
            token["revoked"] = time.time()

    _rewrite(copy, Kind.TOKEN, "a token", void)


def _rewrite(copy: sqlite3.Connection, kind: Kind, what: str, change: Callable[[str, dict[str, Any]], None]) -> None:
    for name, text in copy.execute("SELECT name, data FROM records WHERE kind = ?", (kind,)).fetchall():
        try:
            kept = parse_json(text)
            change(name, kept)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise TowerError(
                "TWR104", f"{what} in the copy cannot be read: {error}", mend="use an older copy"
            ) from error
        copy.execute("UPDATE records SET data = ? WHERE kind = ? AND name = ?", (json.dumps(kept), kind, name))
