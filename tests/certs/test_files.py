from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from certs.files import intruder, is_there, locked, read_file, remove_leftovers, replace_file


def test_a_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"old")
    path.chmod(0o644)
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["key"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["key"]


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="no regular file"):
            replace_file(tmp_path / name, b"new")
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_a_pipe_is_read_to_its_end_however_it_is_cut(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    whole = bytes(range(256)) * 10_000

    def write() -> None:
        with (tmp_path / "pipe").open("wb", buffering=0) as pipe:
            for at in range(0, len(whole), 99_999):
                pipe.write(whole[at : at + 99_999])

    with ThreadPoolExecutor(1) as pool:
        pool.submit(write)
        assert read_file(tmp_path / "pipe", 10 * len(whole)) == whole


def test_a_pipe_to_which_nobody_writes_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certs.files.PIPE_DEADLINE", 0.01)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TimeoutError, match=r"a pipe, and nothing came through it for 0\.01 s"):
        read_file(tmp_path / "pipe", 10)


def test_no_more_is_read_of_a_file_than_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    assert read_file(tmp_path / "file", 4) == b"0123"
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path, 4)


def test_what_cannot_be_looked_at_counts_as_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert is_there(tmp_path / "file")
    assert is_there(tmp_path / ("x" * 300))
    assert not is_there(tmp_path / "none")
    assert not is_there(tmp_path / "file" / "none")


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".tower-abc").write_bytes(b"half")
    (tmp_path / "key").write_bytes(b"whole")
    (tmp_path / ".tower-folder").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".tower-folder", "key"]


def test_a_lock_that_another_holds_ends_by_its_deadline(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock"),
        pytest.raises(TimeoutError, match=r"held by another process for 0.05 s"),
        locked(tmp_path / "lock", deadline=0.05),
    ):
        pytest.fail("two hold the lock")
    with locked(tmp_path / "lock", deadline=0.05):
        pass


@pytest.mark.parametrize(("mode", "says"), [(0o777, "everybody"), (0o1777, "everybody"), (0o770, "group 4711")])
def test_a_directory_where_others_may_write_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, says: str
) -> None:
    monkeypatch.setattr(Path, "stat", _with_group(Path.stat, tmp_path, 4711))
    tmp_path.chmod(mode)
    assert says in intruder(tmp_path)
    assert intruder(tmp_path, public=True) == ""
    tmp_path.chmod(0o755)
    assert intruder(tmp_path) == ""


def test_a_group_of_this_process_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o2770)  # as Kubernetes makes a volume for the group of a pod
    monkeypatch.setattr(os, "getgroups", lambda: [tmp_path.stat().st_gid])
    assert intruder(tmp_path) == ""


def test_somebody_elses_directory_is_named_and_so_is_one_below_it_where_all_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = tmp_path / "planted"
    inner = planted / "state"
    inner.mkdir(parents=True)
    monkeypatch.setattr(Path, "stat", _with_owner(Path.stat, planted, 4711))
    assert "uid 4711" in intruder(planted)
    assert intruder(inner) == "", "root gave them that place, if nobody else could make it"
    tmp_path.chmod(0o1777)
    assert f"{planted} belongs to uid 4711" in intruder(inner)


def _with_group(stat: Any, whose: Path, group: int) -> Any:
    return lambda path, **more: _changed(stat(path, **more), gid=group) if path == whose else stat(path, **more)


def _with_owner(stat: Any, whose: Path, owner: int) -> Any:
    return lambda path, **more: _changed(stat(path, **more), uid=owner) if path == whose else stat(path, **more)


def _changed(found: os.stat_result, *, uid: int | None = None, gid: int | None = None) -> os.stat_result:
    fields = list(found)
    fields[4] = uid if uid is not None else fields[4]
    fields[5] = gid if gid is not None else fields[5]
    return os.stat_result(fields)
