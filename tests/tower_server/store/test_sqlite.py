"""The SQLite store: the conformance suite, and what only a file can suffer."""

import asyncio
import errno
import fcntl
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import pytest_asyncio

from daemon.faults import TowerError
from tests.tower_server.store.conformance import StoreConformance, take
from tower_server.store import sqlite, sqlite_file
from tower_server.store.base import Expired, Kind
from tower_server.store.sqlite import SqliteStore

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def store(tmp_path):
    store = await SqliteStore.open(tmp_path / "state" / "tower.db")
    yield store
    await store.close()


class TestSqliteStore(StoreConformance):
    pass


async def test_records_and_versions_survive_a_restart(tmp_path):
    path = tmp_path / "tower.db"
    first = await SqliteStore.open(path)
    made = await first.create(Kind.CLUSTER, "a", {"n": 1})
    await first.close()
    second = await SqliteStore.open(path)
    assert await second.get(Kind.CLUSTER, "a") == made
    assert (await second.create(Kind.CLUSTER, "b", {})).version != made.version
    await second.close()


async def test_the_file_and_its_log_are_private(store, tmp_path):
    await store.create(Kind.SECRET, "authority", {"key": "x"})
    files = list((tmp_path / "state").iterdir())
    assert {file.name for file in files} >= {"tower.db", "tower.db-wal"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


async def test_a_widened_file_is_made_private_again(tmp_path):
    path = tmp_path / "tower.db"
    await (await SqliteStore.open(path)).close()
    path.chmod(0o644)
    await (await SqliteStore.open(path)).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_link_or_a_file_of_somebody_else_gets_no_key(tmp_path, monkeypatch):
    path, elsewhere = tmp_path / "tower.db", tmp_path / "elsewhere"
    path.symlink_to(elsewhere)
    with pytest.raises(TowerError, match="symbolic link") as caught:
        await SqliteStore.open(path)
    assert (caught.value.code, elsewhere.exists()) == ("TWR105", False)
    path.unlink()
    path.touch()
    path.chmod(0o644)
    somebody = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody)  # seen from there, the file is another user's
    with pytest.raises(TowerError, match=f"belongs to uid {path.stat().st_uid}") as caught:
        await SqliteStore.open(path)
    assert caught.value.code == "TWR105"
    assert (path.stat().st_size, stat.S_IMODE(path.stat().st_mode)) == (0, 0o644)


async def test_a_directory_where_others_may_put_files_gets_no_key(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "tower.db-wal").write_bytes(bytes(100))  # what SQLite would write its log into
    with pytest.raises(TowerError, match="may be written by everybody") as caught:
        await SqliteStore.open(shared / "tower.db")
    assert caught.value.code == "TWR105"
    assert f"chmod go-w {shared}" in caught.value.mend
    assert [path.name for path in shared.iterdir()] == ["tower.db-wal"]
    shared.chmod(0o755)
    await (await SqliteStore.open(shared / "tower.db")).close()


async def test_a_second_server_on_the_same_file_is_refused(store, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_file, "LOCK_WAIT", 0.05)
    with pytest.raises(TowerError) as caught:
        await SqliteStore.open(tmp_path / "state" / "tower.db")
    assert caught.value.code == "TWR107"
    assert "held by another process" in caught.value.message
    assert "stop the other tower-server" in caught.value.mend


async def test_what_a_killed_restore_left_is_taken_away_by_the_server_that_has_the_store(store, tmp_path, monkeypatch):
    path, left = tmp_path / "state" / "tower.db", tmp_path / "state" / ".tower-abc"
    left.write_bytes(b"the state before, with its keys")
    monkeypatch.setattr(sqlite_file, "LOCK_WAIT", 0.05)
    with pytest.raises(TowerError):
        await SqliteStore.open(path)
    assert left.exists()  # it may be somebody's who has the lock
    await store.close()
    sqlite_file.open_database(path, migrate=False).close()
    assert left.exists()
    await (await SqliteStore.open(path)).close()
    assert not left.exists()
    assert path.exists()


async def test_a_file_system_without_locks_is_not_taken_for_another_server(store, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(sqlite_file, "LOCK_WAIT", 0.01)
    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(TowerError, match="its file system has no locks") as caught:
        await SqliteStore.open(tmp_path / "state" / "tower.db")  # SQLite says "busy", as it does there
    assert caught.value.code == "TWR105"
    assert "a local disk" in caught.value.mend


async def test_a_newer_file_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "tower.db"
    await (await SqliteStore.open(path)).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(TowerError) as caught:
        await SqliteStore.open(path)
    assert caught.value.code == "TWR106"
    assert "schema 7; this one knows up to 1" in caught.value.message
    assert path.read_bytes() == before


async def test_an_older_file_is_migrated_with_its_records(tmp_path):
    path = tmp_path / "tower.db"
    store = await SqliteStore.open(path)
    await store.create(Kind.CLUSTER, "kept", {})
    await store.close()
    newer = (*sqlite_file.MIGRATIONS, "ALTER TABLE records ADD COLUMN extra TEXT")
    connection = sqlite_file.open_database(path, migrations=newer)
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    assert connection.execute("SELECT name, extra FROM records").fetchall() == [("kept", None)]
    connection.close()


async def test_a_failed_migration_changes_nothing(tmp_path):
    path = tmp_path / "tower.db"
    await (await SqliteStore.open(path)).close()
    broken = (*sqlite_file.MIGRATIONS, "CREATE TABLE half (x TEXT); INSERT INTO nowhere VALUES (1)")
    with pytest.raises(TowerError):
        sqlite_file.open_database(path, migrations=broken)
    connection = sqlite_file.open_database(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone() == (0,)
    connection.close()


async def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "tower.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()
    with pytest.raises(TowerError, match="not a tower store"):
        await SqliteStore.open(path)


@pytest.mark.parametrize("content", [b"garbage " * 1000, b"SQLite format 3\0" + b"\xff" * 8000])
async def test_a_damaged_file_is_refused_with_its_mend(tmp_path, content):
    path = tmp_path / "tower.db"
    path.write_bytes(content)
    with pytest.raises(TowerError) as caught:
        await SqliteStore.open(path)
    assert caught.value.code == "TWR105"
    assert str(path) in caught.value.message
    assert "restore" in caught.value.mend


async def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "state").write_text("a file where the directory should be")
    with pytest.raises(TowerError) as caught:
        await SqliteStore.open(tmp_path / "state" / "tower.db")
    assert caught.value.code == "TWR105"
    assert "set state_dir to a directory" in caught.value.mend


async def test_a_disk_that_is_read_only_is_to_be_mounted_and_not_to_be_given_to_somebody(tmp_path, monkeypatch):
    def refuse(*_args: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tower_server.store.sqlite_file.os.open", refuse)
    with pytest.raises(TowerError, match="Read-only file system") as caught:
        await SqliteStore.open(tmp_path / "tower.db")
    monkeypatch.undo()
    assert caught.value.code == "TWR105"
    assert caught.value.mend.startswith(f"mount what {tmp_path} is on so that it can be written")


async def test_a_disk_that_failed_is_told_from_a_full_one(tmp_path, monkeypatch):
    failed = sqlite3.OperationalError("disk I/O error")
    failed.sqlite_errorname = "SQLITE_IOERR_WRITE"
    error = sqlite_file.explain(failed, tmp_path / "tower.db")
    assert error.message == f"the store {tmp_path}/tower.db cannot be written: disk I/O error"
    assert error.mend.startswith(
        f"make room on the file system of {tmp_path}, or where there is some see what the kernel"
    )
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY))  # as the kernel does then
    error = sqlite_file.explain(failed, tmp_path / "tower.db")
    assert error.message.endswith("disk I/O error, and its file system is mounted read-only")
    assert "make room" not in error.mend
    assert "`dmesg`" in error.mend


async def test_a_full_disk_is_named_and_heals_by_itself(store):
    await store.create(Kind.CLUSTER, "first", {})
    connection = store._connection
    pages = await store._run(lambda: connection.execute("PRAGMA page_count").fetchone()[0])
    await store._run(lambda: connection.execute(f"PRAGMA max_page_count = {pages}"))
    with pytest.raises(TowerError) as caught:
        await store.create(Kind.CLUSTER, "big", {"x": "y" * 100_000})
    assert caught.value.code == "TWR105"
    assert "make room" in caught.value.mend
    assert (await store.get(Kind.CLUSTER, "first")).name == "first"
    await store._run(lambda: connection.execute("PRAGMA max_page_count = 1000000"))
    since = (await store.list(Kind.CLUSTER)).version
    await store.create(Kind.CLUSTER, "big", {"x": "y" * 100_000})
    assert [change.record.name for change in await take(store, Kind.CLUSTER, since, 1)] == ["big"]


@pytest.mark.parametrize("replaced", [False, True])
async def test_nothing_is_acknowledged_that_the_next_start_would_not_find(store, tmp_path, replaced):
    path = tmp_path / "state" / "tower.db"
    made = await store.create(Kind.CLUSTER, "a", {})
    if replaced:
        (tmp_path / "copy").write_bytes(path.read_bytes())
        (tmp_path / "copy").rename(path)
    else:
        path.unlink()
    for attempt in (store.create(Kind.CLUSTER, "b", {}), store.delete(Kind.CLUSTER, "a"), store.check()):
        with pytest.raises(TowerError, match="was removed or replaced while this server has it open") as caught:
            await attempt
        assert caught.value.code == "TWR105"
        assert "`tower-server backup FILE` now" in caught.value.mend
    assert (await store.list(Kind.CLUSTER)).items == (made,), "who comes is served as before"
    assert b"CREATE TABLE records" in await store.snapshot()


async def test_a_disk_that_hangs_keeps_no_server_from_stopping(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sqlite, "OPERATION_DEADLINE", 0.05)
    store = await SqliteStore.open(tmp_path / "tower.db")
    answers = threading.Event()
    store._worker.submit(answers.wait)
    try:
        async with asyncio.timeout(10.0):
            await store.close()
        said = capsys.readouterr().out
        assert "store-not-closed" in said
        assert "could not be closed within 0.05 s" in said
        assert f"look at the disk of {tmp_path}" in said
    finally:
        answers.set()
        store._worker.shutdown()  # waits: the connection is closed after all


async def test_a_check_writes_and_leaves_nothing(store, monkeypatch):
    await store.create(Kind.CLUSTER, "first", {})
    since = (await store.list(Kind.CLUSTER)).version
    assert re.fullmatch(r"answers, 1 cluster, takes writes, [\d.]+\w* free", await store.check())
    assert (await store.list(Kind.CLUSTER)).version == since
    left = await store._run(lambda: store._connection.execute("SELECT name FROM records").fetchall())
    assert left == [("first",)]
    connection = store._connection
    await store._run(lambda: connection.execute("PRAGMA query_only = ON"))  # it reads, and takes no write
    with pytest.raises(TowerError) as caught:
        await store.check()
    assert caught.value.code == "TWR105"
    await store._run(lambda: connection.execute("PRAGMA query_only = OFF"))
    monkeypatch.setattr("tower_server.store.sqlite._free", lambda folder: 4096)
    with pytest.raises(TowerError, match=r"4\.0Ki are left to the store") as caught:
        await store.check()
    assert "make room on the file system" in caught.value.mend


async def test_a_watch_that_falls_behind_is_told_so(tmp_path):
    store = await SqliteStore.open(tmp_path / "tower.db", kept_changes=4)
    since = (await store.list(Kind.CLUSTER)).version
    for number in range(5):
        await store.create(Kind.CLUSTER, f"c{number}", {})
    with pytest.raises(Expired):
        await take(store, Kind.CLUSTER, since, 1)
    await store.close()


async def test_a_write_whose_caller_went_away_still_reaches_watchers(store):
    since = (await store.list(Kind.CLUSTER)).version
    writing = asyncio.ensure_future(store.create(Kind.CLUSTER, "kept", {}))
    await asyncio.sleep(0)
    writing.cancel()
    assert [change.record.name for change in await take(store, Kind.CLUSTER, since, 1)] == ["kept"]


WRITER = """
import asyncio, sys
from pathlib import Path
from tower_server.store.base import Kind
from tower_server.store.sqlite import SqliteStore

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]))
    for number in range(100_000):
        await store.create(Kind.TOKEN, f"t{number}", {"used": True})
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_what_was_acknowledged_survives_a_kill(tmp_path):
    path = tmp_path / "tower.db"
    for _ in range(3):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout
        for line in writer.stdout:
            if int(line) >= 20:
                break
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged = max([20, *(int(rest) for rest in writer.stdout.read().splitlines() if rest)])
        writer.stdout.close()
        writer.wait()
        store = await SqliteStore.open(path)
        names = {record.name for record in (await store.list(Kind.TOKEN)).items}
        await store.close()
        assert {f"t{number}" for number in range(acknowledged + 1)} <= names
