from __future__ import annotations

import errno
import os
import pwd
import stat
from pathlib import Path

import pytest

from daemon.faults import TowerError
from tests.towerctl.kit import Shell
from towerctl.files import read_text, write_private


def test_what_is_written_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new", what="the manifest")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_directory_is_named_with_its_mend(tmp_path: Path) -> None:
    with pytest.raises(TowerError, match=r"cannot write the manifest to .*nowhere/x: No such file") as refused:
        write_private(tmp_path / "nowhere" / "x", "", what="the manifest")
    assert "make the directory first" in refused.value.mend


def test_a_disk_without_room_is_named_with_its_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TowerError, match="No space left on device") as refused:
        write_private(tmp_path / "m.yaml", "new", what="the manifest")
    assert "with room on its disk" in refused.value.mend
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_the_place_of_the_file_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(TowerError, match="cannot write the manifest"):
        write_private(tmp_path / "d", "", what="the manifest")
    assert list(tmp_path.iterdir()) == [tmp_path / "d"]


@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file"), (b"\xff\xfe", "is not text"), (b"x" * 11, "is larger than 10 bytes")]
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "policy.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TowerError, match=why) as refused:
        read_text(path, what="the policy file", limit=10)
    assert str(path) in refused.value.message
    assert refused.value.code == "TWR104"


def test_a_pipe_that_brings_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certs.files.PIPE_DEADLINE", 0.01)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TowerError, match=r"cannot read the policy file .*: it is a pipe, and nothing came through it"):
        read_text(tmp_path / "pipe", what="the policy file")


def test_a_user_without_a_home_is_told_so_where_one_is_needed(
    live: Shell, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME")
    said = "this user has no home directory"
    live("kubeconfig", cluster, "--merge").refused(said, "set HOME, or KUBECONFIG", code=2)
    live("credential", cluster).refused(said, "set HOME, or XDG_CACHE_HOME", code=2)
    live("get", "clusters", "--context", "prod").refused(said, "set HOME, or KUBECONFIG", code=2)
    assert live("delete", "cluster", cluster, "--yes").code == 0
