"""What is lacking is installed by root, who is told, and asked of everybody else in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab import debian

pytestmark = pytest.mark.slow  # many processes


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose apt-get notes how it was called and puts `tool` where it is found."""
    apt = tmp_path / "apt-get"
    apt.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n[ "$1" = install ] && touch {tmp_path}/tool\nexit 0\n')
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(debian, "PACKAGES", {"tool-package": (tmp_path / "tool").exists, "there": lambda: True})
    monkeypatch.setattr(debian.os, "geteuid", lambda: 0)
    return tmp_path


def test_root_installs_what_is_lacking_and_says_so(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert debian.require(["there", "tool-package"])
    assert (machine / "calls").read_text().splitlines()[1].startswith("install -y --no-install-recommends tool-package")
    assert "installing from Debian, as root: apt-get install" in capsys.readouterr().err
    assert debian.require(["tool-package"])
    assert capsys.readouterr().err == ""


def test_others_get_the_line_to_run_and_a_failure(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(debian.os, "geteuid", lambda: 1000)
    assert not debian.require(["tool-package"])
    said = capsys.readouterr().err
    assert "run as root once: apt-get install -y --no-install-recommends tool-package" in said
    assert not (machine / "calls").exists()


def test_a_failed_installation_shows_what_apt_said(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (machine / "apt-get").write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n")
    assert not debian.require(["tool-package"])
    assert "E: Unable to locate package" in capsys.readouterr().err


def test_an_installation_that_brings_nothing_is_a_failure(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (machine / "apt-get").write_text("#!/bin/sh\nexit 0\n")
    assert not debian.require(["tool-package"])
    assert "still not found" in capsys.readouterr().err
