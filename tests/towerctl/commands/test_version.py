from __future__ import annotations

import json
from importlib.metadata import version

from tests.towerctl.kit import Shell

OURS = version("tower-tunnel")


def test_both_versions_are_printed(live: Shell) -> None:
    assert live.ok("version") == f"Client: {OURS}\nServer: {OURS} (host lab)\n"


def test_the_clients_own_needs_no_server(shell: Shell) -> None:
    assert shell.ok("version", "--client") == f"Client: {OURS}\n"


def test_without_a_server_the_clients_is_printed_and_the_exit_code_is_one(shell: Shell) -> None:
    ran = shell("version", "-o", "json")
    assert ran.code == 1
    kind = {"apiVersion": "tower/v1", "kind": "Version"}
    assert json.loads(ran.out) == {**kind, "client": OURS, "server": None, "host": None}
    assert "no tower server runs here" in ran.err
