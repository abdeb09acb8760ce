from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import pytest

from certs.keys import generate_key, key_to_pem
from protocol import defaults
from towerctl.loginkey import EARLY, LoginKey, keep, kept, login_file


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return login_file("apiserver:6443", "tower-system", "prod")


def test_a_key_is_kept_for_its_owner_alone(path: Path) -> None:
    held = LoginKey("tower-operator-1", generate_key())
    keep(path, held)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    found = kept(path)
    assert found is not None
    assert (found.request, key_to_pem(found.key)) == ("tower-operator-1", key_to_pem(held.key))


def test_one_that_is_open_to_others_too_old_or_broken_is_not_used(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kept(path) is None
    keep(path, LoginKey("r", generate_key()))
    path.chmod(0o644)
    assert kept(path) is None
    assert "open to others" in capsys.readouterr().err
    path.chmod(0o600)
    document = json.loads(path.read_text())
    for change in (
        {"made": time.time() - defaults.LOGIN_LIFETIME + EARLY},
        {"made": time.time() + 60},
        {"key": "no key"},
        {"request": None, "made": None},
    ):
        path.write_text(json.dumps({**document, **change}))
        assert kept(path) is None, change
    path.write_text("{")
    assert kept(path) is None


def test_clusters_and_towers_are_kept_apart(path: Path) -> None:
    others = [
        ("apiserver:6443", "tower-system", "dev"),
        ("apiserver:6443", "other", "prod"),
        ("a", "tower-system", "prod"),
    ]
    assert len({path, *(login_file(*other) for other in others)}) == 4


def test_a_cache_that_cannot_be_written_is_said_and_no_obstacle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    keep(tmp_path / "file" / "x.json", LoginKey("r", generate_key()))
    assert "each command makes a new one" in capsys.readouterr().err
