"""Tokens from files: bounded, and never repeated in an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daemon.faults import TowerError
from tower_agent.token import MAX_INPUT, read_token_file, read_token_input


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text("twr1.abc\n")
    assert read_token_file(file) == "twr1.abc\n"


@pytest.mark.parametrize(
    ("content", "code"), [(b"x" * (MAX_INPUT + 1), "TWR207"), ("töken".encode(), "TWR207"), (None, "TWR104")]
)
def test_what_is_no_token_file_is_refused(tmp_path: Path, content: bytes | None, code: str) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.touch(mode=0o600)
        file.write_bytes(content)
    with pytest.raises(TowerError) as caught:
        read_token_file(file)
    assert caught.value.code == code
    assert "ken" not in caught.value.message.replace("token", "")


@pytest.mark.parametrize(
    ("mode", "owner", "private"),
    [
        (0o600, 1000, True),
        (0o400, 0, True),
        (0o640, 1000, False),
        (0o604, 1000, False),
        (0o620, 1000, False),
        (0o440, 0, True),  # root hands it to the agent's group: a Secret that is mounted with fsGroup
        (0o444, 0, False),
        (0o460, 0, False),
    ],
)
def test_a_file_that_others_can_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, owner: int, private: bool
) -> None:
    file = tmp_path / "token"
    file.write_text("twr1.abc")
    file.chmod(mode)
    real = os.fstat

    def owned(descriptor: int) -> os.stat_result:
        found = list(real(descriptor))
        found[4] = owner
        return os.stat_result(found)

    monkeypatch.setattr("tower_agent.token.os.fstat", owned)
    if private:
        assert read_token_file(file) == "twr1.abc"
        return
    with pytest.raises(TowerError) as caught:
        read_token_file(file)
    assert caught.value.code == "TWR104"
    assert f"{file} is open to others" in caught.value.message
    assert "chmod 600" in caught.value.mend
    assert "defaultMode" in caught.value.mend


def test_a_file_of_roots_for_another_group_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("twr1.abc")
    file.chmod(0o440)
    monkeypatch.setattr("tower_agent.token.os.getegid", lambda: file.stat().st_gid + 1)
    monkeypatch.setattr("tower_agent.token.os.getgroups", list)
    with pytest.raises(TowerError, match="is open to others"):
        read_token_file(file)


def test_standard_input_ends_at_its_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"twr1.abc\n")  # and it stays open, as a terminal would
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert read_token_input() == "twr1.abc\n"
    os.close(writing)
