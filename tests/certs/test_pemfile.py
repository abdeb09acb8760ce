"""PEM in memory: readable while needed, gone afterwards, never on a disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from certs.pemfile import in_memory


def test_it_exists_only_inside() -> None:
    with in_memory(b"PEM" * 100_000) as path:
        assert Path(path).read_bytes() == b"PEM" * 100_000
        assert "memfd" in os.readlink(path)
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    with pytest.raises(OSError, match="No such file"):
        Path(path).read_bytes()
