"""One request has one id in the agent's log and in the member's own, under the name and address of its caller."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.conftest import MEMBER
from tests.kubernetes.rawhttp import Connection
from tests.kubernetes.views import Pair
from tests.lab.controlplane import ControlPlane
from tests.lab.processes import wait_until, whole_lines
from tests.lab.world import TowerWorld

pytestmark = pytest.mark.cluster
CALLER = "127.0.0.9"  # another address than the agent's own, which is 127.0.0.1 here


def lines(path: Path, marker: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in whole_lines(path) if marker in line]


def test_the_member_sees_who_called_and_from_where(member: ControlPlane, world: TowerWorld, pair: Pair) -> None:
    name = f"audited-{pair.caller}"
    spoofed = ("X-Forwarded-For: 10.9.9.9", "X-Real-Ip: 10.9.9.9", "Audit-ID: chosen-by-the-caller")
    with Connection(pair.tunnel, source=CALLER) as connection:
        connection.send(connection.request("GET", f"/api/v1/namespaces/shared/configmaps/{name}", *spoofed))
        assert connection.answer().status == 404
    log = world.members[MEMBER].agent.log
    wait_until(lambda: bool(lines(log, name) and lines(member.audit_log, name)), "the request in both logs", 30)
    (ours,), (theirs,) = lines(log, name), lines(member.audit_log, name)

    assert ours["audit_id"] == theirs["auditID"] != "chosen-by-the-caller"
    assert ours["caller"].startswith(f"{CALLER}:")
    assert theirs["sourceIPs"] == [CALLER, "127.0.0.1"]
    assert (ours["verb"], ours["code"], theirs["verb"]) == ("get", 404, "get")
    agent = f"system:serviceaccount:tower-{world.host}:tower-agent-{world.host}"
    if pair.caller == "certificate":
        assert theirs["user"]["username"] == agent
        assert theirs["impersonatedUser"]["username"] == ours["who"] == f"tower:{world.host}:admin"
    else:
        assert theirs["user"]["username"] == "system:serviceaccount:shared:caller"
        assert "impersonatedUser" not in theirs
    connection_id = f'"connection": "{ours["connection"]}"'
    wait_until(lambda: bool(lines(world.server.log, connection_id)), "the server's line of the connection", 30)
    (connection_line,) = lines(world.server.log, connection_id)
    assert connection_line["caller"] == ours["caller"]
