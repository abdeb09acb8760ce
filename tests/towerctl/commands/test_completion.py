"""The scripts are run by the shells that are here, and complete what a person would type."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.towerctl.kit import Shell, http, peer
from towerctl.root import TABLE

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


FISH = """
echo @
complete -C "{line}"
"""
# Of zsh's line editor only what the script hands over is of interest: candidates, with what they do where it is known.
ZSH_EDITOR = """
compdef() { }
_describe() { print -rl -- "${(P@)3}" }
compadd() { print -rl -- "${completions[@]}" }
"""
ZSH = """
echo @
words=({words}) CURRENT={number}
_towerctl_completion
"""


@pytest.fixture
def typed(folder: Path) -> Callable[[str, str], str]:
    """Runs a script of a shell where a server answers."""

    def run(shell: str, script: str) -> str:
        env = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(folder), "TOWER_ADMIN_SOCKET": str(folder / "s")}
        command = {"bash": ["bash", "-c"], "zsh": ["zsh", "-f", "-c"], "fish": ["fish", "--no-config", "-c"]}[shell]
        with peer(folder / "s", http("200 OK", CLUSTERS)):
            done = subprocess.run([*command, script], env=env, capture_output=True, text=True, timeout=90)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


@pytest.mark.slow
def test_bash_completes_verbs_kinds_names_and_values(typed: Callable[[str, str], str]) -> None:
    script = "source <(towerctl completion bash)"
    script += "".join(COMPLETE.format(words=words, at=at) for words, at, _ in CASES)
    assert [set(line.split()) for line in typed("bash", script).splitlines()] == [expected for _, _, expected in CASES]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed (apt-get install fish)")
def test_fish_completes_the_same_and_says_what_each_does(typed: Callable[[str, str], str]) -> None:
    script = "towerctl completion fish | source"
    script += "".join(FISH.format(line=words.replace("''", "")) for words, _, _ in CASES)
    offered = [part.splitlines() for part in typed("fish", script).split("@\n")[1:]]
    assert [{line.partition("\t")[0] for line in lines} for lines in offered] == [expected for _, _, expected in CASES]
    assert f"delete\t{TABLE['delete'][1]}" in offered[0], "what stands after a comma was cut off"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed (apt-get install zsh)")
def test_zsh_completes_the_same_and_says_what_each_does(typed: Callable[[str, str], str]) -> None:
    script = ZSH_EDITOR + "source <(towerctl completion zsh)"
    script += "".join(ZSH.format(words=words, number=at + 1) for words, at, _ in CASES)
    offered = [part.splitlines() for part in typed("zsh", script).split("@\n")[1:]]
    assert [{line.partition(":")[0] for line in lines} for lines in offered] == [expected for _, _, expected in CASES]
    assert f"delete:{TABLE['delete'][1]}" in offered[0]


@pytest.mark.parametrize("kind", ["plain", "through kubectl"])
def test_a_name_is_not_completed_where_that_would_take_a_login(folder: Path, kind: str) -> None:
    """By `--context` the apiserver of a cluster would have to be asked who this is, at each Tab."""
    env = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    words = ["get", "clusters", "--context", "prod", ""]
    command = [str(BIN / "kubectl_complete-tower"), *words]
    if kind == "plain":
        command = [str(BIN / "towerctl")]
        env |= {"_TOWERCTL_COMPLETE": "bash_complete", "COMP_WORDS": f"towerctl {' '.join(words)}", "COMP_CWORD": "5"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr, done.stdout.strip()) == (0, "", ":4" if kind != "plain" else "")


def test_an_unknown_shell_is_a_usage_error_that_lists_the_known(shell: Shell) -> None:
    shell("completion", "tcsh").refused("bash", "zsh", "fish", code=2)


@pytest.mark.parametrize(
    ("words", "candidates", "directive"),
    [
        (["de"], ["describe", "delete"], ":4"),
        (["describe", "cluster", "l"], ["lab"], ":4"),
        (["get", "clusters", "-o", "j"], ["json"], ":4"),
        (["kubeconfig", "lab", "-f", ""], [], ":0"),
        (["--socket", ""], [], ":0"),
    ],
    ids=["verb", "name", "value", "file", "socket"],
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
