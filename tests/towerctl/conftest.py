"""Commands are run as `main` runs them, in process; compared are exit code, standard output and standard error."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.towerctl.kit import Shell


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: that of a Unix socket has at most 107 bytes."""
    made = Path(tempfile.mkdtemp(prefix="twr"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def shell(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """A user with an empty home and no tower server."""
    for name in ("KUBECONFIG", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    home = folder / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TOWER_ADMIN_SOCKET", str(folder / "admin.sock"))
    return Shell(capsys, home=home, socket=folder / "admin.sock")
