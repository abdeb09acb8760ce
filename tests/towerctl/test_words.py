from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


def process(*argv: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": "/nonexistent"}
    return subprocess.run([str(BIN / argv[0]), *argv[1:]], env=env, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(("program", "name"), [("towerctl", "towerctl"), ("kubectl-tower", "kubectl tower")])
def test_help_and_hints_name_the_program_as_it_was_called(program: str, name: str) -> None:
    assert f"Usage: {name} " in process(program, "--help").stdout
    assert f"`{name} explain TWR609`" in process(program, "explain", "TWR000").stderr


def test_the_plugin_never_calls_itself_towerctl() -> None:
    assert "towerctl" not in process("kubectl-tower", "--help").stdout
    assert "towerctl" not in process("kubectl-tower", "forward", "--help").stdout
