"""A member moves from a Go agent to ours by the steps of docs/MIGRATION.md: port and callers stay."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from tests.interop.peers import TOKEN, VINTAGES, GoAgent, GoProxy, OurAgent
from tests.interop.test_go_peers import caller_of
from tests.lab.controlplane import run
from tests.lab.processes import free_ports, wait_until
from tests.lab.world import BIN, COMMAND_DEADLINE, READY_DEADLINE, TowerWorld
from tests.loopback.callers import Caller
from tests.loopback.member import BackendMember

pytestmark = pytest.mark.slow  # many processes
CLUSTER = "edge-1"


def join_natively(tower: TowerWorld, member: BackendMember) -> None:
    """Steps 1 and 2 of the member's part."""
    tower.towerctl("create", "legacy-window", CLUSTER, "--ttl", "1h")
    token = json.loads(tower.towerctl("create", "token", CLUSTER, "-o", "json").stdout)["token"]
    folder = tower.folder / "native"
    folder.mkdir()
    tower.apply_manifest(CLUSTER, member, folder / "policy.yaml")
    (health,) = free_ports(1)
    config = tower._write(
        folder / "agent.yaml",
        {
            "kubeconfig": str(member.by_certificate),
            "state_dir": str(folder / "state"),
            "policy_file": str(folder / "policy.yaml"),
            "health_address": f"127.0.0.1:{health}",
        },
    )
    command = [str(BIN / "tower-agent"), "--config", str(config), "join"]
    done = run(command, tower.environment(), f"{token}\n".encode(), COMMAND_DEADLINE)
    assert done.code == 0, done
    tower.start_agent(CLUSTER, member, config)


def test_a_member_moves_and_keeps_its_port_and_its_callers(member: BackendMember) -> None:
    (port,) = free_ports(1)
    settings = {"kubesphere_v1": {"enabled": True, "listen": f"127.0.0.1:{port}"}}
    with tempfile.TemporaryDirectory(prefix="twr-move-") as name, TowerWorld(Path(name), settings=settings) as tower:
        tower.towerctl("add", "cluster", CLUSTER, "--no-join")
        tower.towerctl("create", "legacy-token", CLUSTER, "--token-file", "-", stdin=f"{TOKEN}\n".encode())
        go = GoAgent(
            tower.folder / "go", VINTAGES[0], f"http://127.0.0.1:{port}", credential=member.by_certificate, name=CLUSTER
        )
        try:
            go.start()
            tower.until_state(CLUSTER, "Connected")
            before = tower.cluster(CLUSTER)
            assert before["dialect"] == "kubesphere-v1"
            caller = Caller(tower.kubeconfig(CLUSTER))
            assert caller.ask("/moving/go").status == 200

            join_natively(tower, member)
            wait_until(
                lambda: tower.cluster(CLUSTER)["dialect"] == "tower.v1", "the native agent serves", READY_DEADLINE
            )
            tower.until_state(CLUSTER, "Connected")
            assert caller.ask("/moving/both").status == 200
            assert tower.cluster(CLUSTER)["ports"]["kubernetes"] == before["ports"]["kubernetes"]

            go.stop()
            wait_until(lambda: tower.cluster(CLUSTER)["tunnels"] == 1, "the Go agent is gone", READY_DEADLINE)
            assert "no Go agents any more" in tower.towerctl("delete", "legacy-token", CLUSTER).text
            assert caller.ask("/moving/native").status == 200
            after = tower.cluster(CLUSTER)
            assert (after["ready"], after["state"]) == ("True", "Connected"), after  # nobody misses the Go agent
        finally:
            go.stop()
    for step in ("go", "both", "native"):
        (seen,) = member.seen(f"/moving/{step}")
        assert seen.values("impersonate-user") == ["tower:lab:admin"]


def test_a_member_whose_agent_moves_first_is_served_throughout(member: BackendMember) -> None:
    """The other order: ours in the Go agent's place while the host still runs Go Tower, then the host."""
    (port,) = free_ports(1)
    settings = {"kubesphere_v1": {"enabled": True, "listen": f"127.0.0.1:{port}"}}
    with tempfile.TemporaryDirectory(prefix="twr-first-") as name, TowerWorld(Path(name), settings=settings) as tower:
        with GoProxy(tower.folder / "proxy", VINTAGES[0], name=CLUSTER) as proxy:
            go = GoAgent(tower.folder / "go", VINTAGES[0], proxy.url, credential=member.by_certificate, name=CLUSTER)
            try:
                go.start()
                caller = caller_of(proxy)
                assert caller.ask("/first/go").status == 200
                with OurAgent(tower.folder / "ours", proxy.url, kubeconfig=member.by_certificate, name=CLUSTER):
                    assert [caller.ask("/first/both").status for _ in range(8)] == [200] * 8
                    go.stop()
                    log = tower.folder / "proxy" / "proxy.log"
                    wait_until(lambda: "agent disconnected" in log.read_text(), "the Go agent is gone", READY_DEADLINE)
                    assert [caller.ask("/first/ours").status for _ in range(8)] == [200] * 8
                    # The host moves: the same name, the same token, and another server at another address.
                    tower.towerctl("add", "cluster", CLUSTER, "--no-join")
                    tower.towerctl("create", "legacy-token", CLUSTER, "--token-file", "-", stdin=f"{TOKEN}\n".encode())
                    join_natively(tower, member)
                    tower.until_state(CLUSTER, "Connected")
                    moved = Caller(tower.kubeconfig(CLUSTER))
                    assert moved.ask("/first/native").status == 200
                    assert caller.ask("/first/still").status == 200  # until the last caller has its new kubeconfig
            finally:
                go.stop()
        assert moved.ask("/first/alone").status == 200
        assert tower.cluster(CLUSTER)["dialect"] == "tower.v1"
        assert "no Go agents any more" in tower.towerctl("delete", "legacy-token", CLUSTER).text
        assert moved.ask("/first/done").status == 200
    for step in ("native", "alone", "done"):
        (seen,) = member.seen(f"/first/{step}")
        assert seen.values("impersonate-user") == ["tower:lab:admin"]
