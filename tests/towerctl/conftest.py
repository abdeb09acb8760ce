"""Commands are run as `main` runs them, in process; compared are exit code, standard output and standard error."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.world import TowerWorld
from tests.towerctl.kit import Shell
from tests.towerctl.member import Member, member


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: that of a Unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="twr") as made:
        yield Path(made)


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


@pytest.fixture(scope="session")
def tower() -> Iterator[TowerWorld]:
    """A real tower server, as a process with its SQLite store; tests keep apart by the names of their clusters."""
    dialect = {"kubesphere_v1": {"enabled": True, "listen": "127.0.0.1:0"}}
    with tempfile.TemporaryDirectory(prefix="twr") as made, TowerWorld(Path(made), settings=dialect) as world:
        yield world


@pytest.fixture
def live(shell: Shell, tower: TowerWorld, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """The same user where the tower server runs."""
    monkeypatch.setenv("TOWER_ADMIN_SOCKET", str(tower.socket))
    shell.socket = tower.socket
    return shell


@pytest.fixture
def cluster(live: Shell, request: pytest.FixtureRequest) -> Iterator[str]:
    """A cluster that was added and never connected; its name is the test's own."""
    name = f"c-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:10]}"
    live.ok("add", "cluster", name, "-o", "name")
    yield name
    live("delete", "cluster", name, "--yes")


@pytest.fixture(scope="session")
def place(tower: TowerWorld) -> Iterator[Member]:
    """Where agents of this session run."""
    with member(tower.folder / "member") as made:
        yield made


@pytest.fixture(scope="session")
def joined(tower: TowerWorld, place: Member) -> Iterator[str]:
    """A cluster with a real agent; tests leave it as they found it."""
    with place.joined(tower, "joined"):
        yield "joined"
