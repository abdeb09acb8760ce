from __future__ import annotations

import os
from pathlib import Path

import pytest

from protocol import defaults
from tests.towerctl.kit import Shell
from towerctl.context import Ctl


def test_the_machines_socket_is_the_default(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOWER_ADMIN_SOCKET")
    assert Ctl().socket == defaults.ADMIN_SOCKET


def test_the_environment_names_another(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWER_ADMIN_SOCKET", "/elsewhere")
    assert Ctl().socket == "/elsewhere"


@pytest.mark.parametrize("runtime", [True, False])
def test_a_server_that_runs_as_this_user_is_found(
    shell: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch, runtime: bool
) -> None:
    monkeypatch.delenv("TOWER_ADMIN_SOCKET")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert Ctl().socket == defaults.ADMIN_SOCKET
    if runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
    own = (folder / "run" if runtime else shell.home / ".local" / "state") / "tower" / "admin.sock"
    own.parent.mkdir(parents=True)
    own.touch()
    assert Ctl().socket == str(own)
    if not runtime:  # it was started by a session without, as `su`, cron or nohup have
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
        assert Ctl().socket == str(own)


@pytest.mark.parametrize("namespace", ["--namespace", "--tower-namespace"])
def test_a_namespace_without_a_context_names_no_server(live: Shell, namespace: str) -> None:
    live("get", "clusters", namespace, "prod").refused("goes with --context", "add --context NAME", "error:", code=2)


def test_a_socket_beside_a_context_names_two_servers(live: Shell) -> None:
    live("--socket", str(live.socket), "get", "clusters", "--context", "prod").refused("each name a server", code=2)
