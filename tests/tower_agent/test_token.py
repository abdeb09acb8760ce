"""Tokens from files: bounded, and never repeated in an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daemon.faults import TowerError
from tower_agent.token import MAX_INPUT, read_token_file, read_token_input


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("twr1.abc\n")
    assert read_token_file(file) == "twr1.abc\n"


@pytest.mark.parametrize(
    ("content", "code"), [(b"x" * (MAX_INPUT + 1), "TWR207"), ("töken".encode(), "TWR207"), (None, "TWR104")]
)
def test_what_is_no_token_file_is_refused(tmp_path: Path, content: bytes | None, code: str) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(TowerError) as caught:
        read_token_file(file)
    assert caught.value.code == code
    assert "ken" not in caught.value.message.replace("token", "")


def test_standard_input_ends_at_its_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"twr1.abc\n")  # and it stays open, as a terminal would
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert read_token_input() == "twr1.abc\n"
    os.close(writing)
