"""The scripts are run by the shells that are here, and complete what a person would type."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.towerctl.kit import Shell, http, peer

BIN = Path(sys.executable).parent
CLUSTERS = '{"kind": "ClusterList", "items": [{"name": "edge-1"}, {"name": "lab"}]}'


CASES = [
    ("towerctl de", 1, {"delete", "describe"}),
    ("towerctl get t", 2, {"tokens", "tunnels"}),
    ("towerctl describe cluster l", 3, {"lab"}),
    ("towerctl ping e", 2, {"edge-1"}),
    ("towerctl get clusters -o ''", 4, {"table", "wide", "json", "yaml", "name"}),
]
COMPLETE = """
COMPREPLY=() COMP_WORDS=({words}) COMP_CWORD={at}
_towerctl_completion towerctl
echo "${{COMPREPLY[*]}}"
"""


@pytest.mark.slow
def test_bash_completes_verbs_kinds_names_and_values(folder: Path) -> None:
    script = "source <(towerctl completion bash)"
    script += "".join(COMPLETE.format(words=words, at=at) for words, at, _ in CASES)
    env = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": "/nonexistent", "TOWER_ADMIN_SOCKET": str(folder / "s")}
    with peer(folder / "s", http("200 OK", CLUSTERS)):
        done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert [set(line.split()) for line in done.stdout.splitlines()] == [expected for _, _, expected in CASES]


@pytest.mark.parametrize(("shell_name", "line"), [("zsh", "compdef"), ("fish", "complete --no-files")])
def test_the_other_shells_get_a_script_of_their_own(shell: Shell, shell_name: str, line: str) -> None:
    script = shell.ok("completion", shell_name)
    assert line in script
    assert "_TOWERCTL_COMPLETE" in script
    if interpreter := shutil.which(shell_name):
        subprocess.run([interpreter, "-n", "/dev/stdin"], input=script, text=True, check=True, timeout=30)


def test_an_unknown_shell_is_a_usage_error_that_lists_the_known(shell: Shell) -> None:
    shell("completion", "tcsh").refused("bash", "zsh", "fish", code=2)


@pytest.mark.parametrize(
    ("words", "candidates", "directive"),
    [
        (["de"], ["describe", "delete"], ":4"),
        (["describe", "cluster", "l"], ["lab"], ":4"),
        (["get", "clusters", "-o", "j"], ["json"], ":4"),
        (["kubeconfig", "lab", "-f", ""], [], ":0"),
    ],
    ids=["verb", "name", "value", "file"],
)
def test_kubectl_completes_through_the_plugins_own_program(
    folder: Path, words: list[str], candidates: list[str], directive: str
) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "TOWER_ADMIN_SOCKET": str(folder / "s")}
    with peer(folder / "s", http("200 OK", CLUSTERS)):
        done = subprocess.run(
            [BIN / "kubectl_complete-tower", *words], env=env, capture_output=True, text=True, timeout=30
        )
    assert (done.returncode, done.stdout.split()) == (0, [*candidates, directive]), done.stderr
