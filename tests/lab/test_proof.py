"""The demo's proof must be able to fail: a kubectl that answers wrongly, late, all at once or not at all is caught."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.lab import proof

pytestmark = pytest.mark.slow  # many processes

GOOD = {
    "version": "echo 'Server Version: v1'",
    "get": "echo kube-system",
    "logs": "for n in 1 2 3 4; do echo line $n; sleep 0.1; done; exec sleep 60",
    "exec": "echo hello from inside; exit 7",
}


@pytest.fixture
def kubectl(tmp_path: Path) -> Any:
    def make(**changes: str) -> proof.Proof:
        cases = "".join(f"{verb}) {script};;\n" for verb, script in (GOOD | changes).items())
        program = tmp_path / "kubectl"
        program.write_text(f'#!/bin/bash\nshift 2\ncase "$1" in\n{cases}esac\n')
        program.chmod(0o755)
        member = SimpleNamespace(programs={"kubectl": program}, network=None)
        return proof.Proof(cast("Any", member), tmp_path / "config", pod="p", namespace="default")

    return make


def test_right_answers_hold(kubectl: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert kubectl().show()
    said = capsys.readouterr().out
    assert said.count("  ok (") == 4
    assert said.endswith("All of it held.\n")


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"version": "echo 'Client Version: v1'; exit 1"}, "exit code 1, not 0"),
        ({"get": "echo default"}, "no 'kube-system' in its output"),
        ({"exec": "echo hello from inside"}, "exit code 0, not 7"),
        ({"logs": "echo line 1; echo line 2; exit 0"}, "it ended by itself with 0"),
        ({"logs": "echo line 1; exec sleep 60"}, "1 lines within 1 s"),
        ({"version": "exec sleep 60"}, "no end within 1 s"),
    ],
)
def test_a_wrong_answer_is_named_and_fails_the_whole(
    kubectl: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    failure: str,
) -> None:
    monkeypatch.setattr(proof, "DEADLINE", 1.0)
    assert not kubectl(**changes).show()
    said = capsys.readouterr().out
    assert f"  FAILED: {failure}" in said
    assert said.endswith("NOT all of it held.\n")
