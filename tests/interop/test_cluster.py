"""kubectl through a Go proxy and our agent to a real apiserver, which sees the ServiceAccount that was shipped."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.peers import VINTAGES, GoProxy, OurAgent
from tests.interop.test_go_peers import listening
from tests.kubernetes.conftest import view
from tests.kubernetes.views import TRANSPORTS, View
from tests.lab.controlplane import ControlPlane
from tests.lab.processes import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
POD = ("-n", "shared", "shared")
PATIENCE = 30.0


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with tempfile.TemporaryDirectory(prefix="tower-member-") as folder, ControlPlane(Path(folder)) as running:
        running.kubectl("create", "namespace", "shared")
        running.create_pod("shared", namespace="shared")
        running.write_log("shared", "first line", "second line", namespace="shared")
        running.kubectl("create", "serviceaccount", "shipped", "-n", "shared")
        running.kubectl(
            "create", "clusterrolebinding", "shipped", "--clusterrole=cluster-admin", "--serviceaccount=shared:shipped"
        )
        yield running


@pytest.fixture(scope="module", params=VINTAGES)
def through(
    request: pytest.FixtureRequest, plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[View]:
    """A caller with the kubeconfig that the Go proxy wrote."""
    folder = tmp_path_factory.mktemp(f"interop-{request.param}")
    token = plane.kubectl("create", "token", "shipped", "-n", "shared", "--duration=2h").text
    kubeconfig = plane.kubeconfig(f"shipped-{request.param}", token=token)
    with GoProxy(folder / "proxy", request.param) as proxy, OurAgent(folder / "a", proxy.url, kubeconfig=kubeconfig):
        wait_until(lambda: proxy.available and listening(proxy.kubernetes_port), "the cluster's port", PATIENCE)
        yield view(plane, f"go-{request.param}", proxy.kubeconfig)


def test_get_and_who_the_apiserver_sees(through: View) -> None:
    got = through.kubectl("get", "pod", *POD, "-o", "json")
    assert json.loads(got.stdout)["status"]["phase"] == "Running"
    who = through.kubectl("auth", "whoami", "-o", "json")
    assert json.loads(who.stdout)["status"]["userInfo"]["username"] == "system:serviceaccount:shared:shipped"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_exec_over_both_transports(through: View, transport: str) -> None:
    command = ("exec", "-i", *POD, "--", "sh", "-c", "cat; echo err >&2; exit 42")
    done = through.kubectl(*command, env=TRANSPORTS[transport], stdin=b"from the caller\n")
    assert (done.code, done.text) == (42, "from the caller")
    assert b"err" in done.stderr


def test_logs_follow_what_is_written(through: View, plane: ControlPlane) -> None:
    last = f"last line for {through.name}"
    with through.start("logs", "-f", *POD) as follow:
        follow.until(b"second line\n")
        plane.write_log("shared", *(f"line {number}" for number in range(100)), last, namespace="shared")
        assert b"line 99\n" in follow.until(f"{last}\n".encode())
        assert follow.running
