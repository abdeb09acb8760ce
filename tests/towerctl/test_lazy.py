from __future__ import annotations

import subprocess
import sys

import pytest

from tests.towerctl.kit import Shell


@pytest.mark.parametrize("words", [["--help"], ["get", "--help"], ["explain", "201"]])
def test_only_the_command_that_runs_is_imported(words: list[str]) -> None:
    code = f"import sys, towerctl.main; towerctl.main.run({words!r}); print(sorted(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True).stdout
    loaded = {name for name in ("add", "get", "explain", "kubeconfig") if f"'towerctl.commands.{name}'" in told}
    assert loaded == set(words) & {"get", "explain"}


def test_verbs_are_completed_without_importing_them(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TOWERCTL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "towerctl de")
    monkeypatch.setenv("COMP_CWORD", "1")
    for name in [name for name in sys.modules if name.startswith("towerctl.commands.de")]:
        monkeypatch.delitem(sys.modules, name)
    assert shell().out.split() == ["plain,describe", "plain,delete"]
    assert "towerctl.commands.describe" not in sys.modules
