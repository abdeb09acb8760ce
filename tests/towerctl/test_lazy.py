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


def test_one_or_many_of_a_kind_and_what_o_name_prints_are_understood(live: Shell, cluster: str) -> None:
    alone = live.ok("describe", "cluster", cluster, "-o", "name")
    assert alone == f"cluster/{cluster}\n"
    for words in (("clusters", cluster), (alone.strip(),), (f"clusters/{cluster}",)):
        assert live.ok("describe", *words, "-o", "name") == alone
        assert live.ok("get", *words, "-o", "name") == alone
    live.ok("delete", alone.strip(), "--yes")
    live("get", alone.strip()).refused(f"there is no cluster {cluster!r}")


def test_a_kind_that_was_left_out_is_named(shell: Shell) -> None:
    shell("add", "edge-1").refused("Did you mean `towerctl add cluster edge-1`?", code=2)
    shell("describe", "edge-1").refused("there are: cluster, agent, authority", code=2)


def test_verbs_have_no_plural(shell: Shell) -> None:
    shell("gets", "clusters").refused("No such command 'gets'", code=2)
