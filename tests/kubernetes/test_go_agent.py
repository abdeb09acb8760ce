"""kubectl through an unchanged Go agent: held to what the native way is held to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.interop.peers import TOKEN, VINTAGES, GoAgent
from tests.kubernetes.conftest import MEMBER, view, with_token
from tests.kubernetes.test_commands import (  # noqa: F401  # run here as well, with this module's pair
    test_reading_answers_the_same,
    test_writing_answers_the_same_at_every_step,
)
from tests.kubernetes.test_lists_and_watches import test_a_watch_sees_every_change_in_order  # noqa: F401
from tests.kubernetes.test_streams import (  # noqa: F401
    digest,
    echo_port,
    env,
    test_attach_sees_what_is_typed,
    test_exec_answers_while_its_input_is_open,
    test_exec_gives_output_errors_and_exit_code,
    test_exec_with_a_terminal,
    test_exec_with_stdin_ends_when_its_input_ends,
    test_logs_follow_what_is_written,
    test_port_forward_carries_bytes_and_half_closes,
)
from tests.kubernetes.views import Pair
from tests.lab.controlplane import ControlPlane
from tests.lab.processes import free_ports, wait_until
from tests.lab.world import READY_DEADLINE, TowerWorld

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def conditions(tower: TowerWorld) -> dict[str, str]:
    return {each["type"]: each["status"] for each in tower.cluster(MEMBER)["conditions"]}


@pytest.fixture(scope="module")
def go_world(member: ControlPlane) -> Iterator[TowerWorld]:
    """A tower of another name, so that nothing but the binding it makes itself lets its callers in."""
    (port,) = free_ports(1)
    settings = {"kubesphere_v1": {"enabled": True, "listen": f"127.0.0.1:{port}"}}
    with tempfile.TemporaryDirectory(prefix="twr-go-") as name:
        folder = Path(name)
        with TowerWorld(folder, host="golab", settings=settings) as tower:
            tower.towerctl("add", "cluster", MEMBER, "--no-join")
            tower.towerctl("create", "legacy-token", MEMBER, "--token-file", "-", stdin=f"{TOKEN}\n".encode())
            credential = member.kubeconfig("go-agent", groups=["system:masters"])
            agent = GoAgent(folder / "go", VINTAGES[0], f"http://127.0.0.1:{port}", credential=credential, name=MEMBER)
            try:
                agent.start()
                wait_until(
                    lambda: (
                        tower.cluster(MEMBER)["ready"] == "True" and conditions(tower).get("LegacyBinding") == "True"
                    ),
                    "the Go agent's cluster is Ready and bound",
                    READY_DEADLINE,
                )
                yield tower
            finally:
                agent.stop()


@pytest.fixture(scope="module")
def pair(member: ControlPlane, go_world: TowerWorld) -> Pair:
    straight = member.kubeconfig("tower:golab:admin", groups=["tower:golab:cluster-admins"])
    return Pair("certificate", view(member, "direct", straight), view(member, "go", go_world.kubeconfig(MEMBER)))


def test_a_bearer_caller_is_who_its_token_says(member: ControlPlane, go_world: TowerWorld, token: str) -> None:
    caller = view(member, "go", with_token(go_world.kubeconfig(MEMBER), token))
    assert "system:serviceaccount:shared:caller" in caller.kubectl("auth", "whoami").text
    garbage = view(member, "go", with_token(go_world.kubeconfig(MEMBER), "garbage"))
    refused = garbage.kubectl("get", "namespaces")
    assert refused.code != 0
    assert b"You must be logged in to the server" in refused.stderr


def test_cp_of_20_mib_both_ways(pair: Pair, env: Mapping[str, str], tmp_path: Path) -> None:  # noqa: F811
    """Whole at the first try, though kubectl still speaks when the member's server has said all."""
    source, inside, back = tmp_path / "source", tmp_path / "inside", tmp_path / "back"
    source.write_bytes(os.urandom(20 * 1024 * 1024))
    inside.mkdir()
    caller = pair.both()[1]
    done = caller.kubectl("cp", "-n", "shared", str(source), f"shared:{inside}/file", env=env, deadline=50)
    assert (done.code, done.stderr) == (0, b"")
    assert digest(inside / "file") == digest(source)
    done = caller.kubectl("cp", "-n", "shared", f"shared:{inside}/file", str(back), env=env, deadline=50)
    assert done.code == 0, done
    assert digest(back) == digest(source)


def test_towerctl_shows_the_dialect_and_what_is_weaker(go_world: TowerWorld) -> None:
    listed = go_world.towerctl("get", "clusters", "-o", "wide").stdout.decode()
    assert "DIALECT" in listed
    assert "kubesphere-v1" in listed
    described = go_world.towerctl("describe", "cluster", MEMBER).stdout.decode()
    assert "kubesphere-v1" in described
    assert "credential was shipped" in described
    assert TOKEN not in described
