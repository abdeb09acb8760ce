"""Long lists in pages, and watches: every object, every event, in the same order both ways."""

from __future__ import annotations

import contextlib
import json
import threading

import pytest

from tests.kubernetes.rawhttp import Connection
from tests.kubernetes.views import Pair, View, assert_same
from tests.lab.controlplane import ControlPlane

pytestmark = pytest.mark.cluster
MANY = 10_000
WRITERS = 4


@pytest.fixture(scope="session")
def many(member: ControlPlane) -> str:
    """A namespace with 10,000 objects."""
    member.kubectl("create", "namespace", "many")
    view = View("direct", member.programs["kubectl"], member.admin_kubeconfig, member.folder / "home")
    failures: list[str] = []

    def create(first: int) -> None:
        with Connection(view) as connection:
            for number in range(first, MANY, WRITERS):
                body = json.dumps({"metadata": {"name": f"object-{number:05d}"}, "data": {"n": str(number)}}).encode()
                headers = ("Content-Type: application/json", f"Content-Length: {len(body)}")
                connection.send(connection.request("POST", "/api/v1/namespaces/many/configmaps", *headers, body=body))
                if (answer := connection.answer()).status != 201:
                    failures.append(answer.body.decode())
                    return

    threads = [threading.Thread(target=create, args=(first,)) for first in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    return "many"  # it goes with the member: deleting one by one takes longer than all tests of this file


def test_ten_thousand_objects_in_pages_and_in_one(pair: Pair, many: str) -> None:
    for size in ("500", "0"):
        command = ("get", "configmaps", "-n", many, "-o", "json", f"--chunk-size={size}")
        direct, tunnel = (view.kubectl(*command, deadline=60) for view in pair.both())
        assert len(json.loads(direct.stdout)["items"]) == MANY
        assert_same(pair, direct, tunnel)


def test_a_watch_sees_every_change_in_order(pair: Pair, member: ControlPlane) -> None:
    name = f"watched-{pair.caller}"
    with contextlib.ExitStack() as stack:
        command = (
            "get",
            "configmaps",
            "-n",
            "shared",
            "--watch",
            "-l",
            f"watch={pair.caller}",
            "--output-watch-events",
        )
        watches = [stack.enter_context(view.start(*command, "-o", "json")) for view in pair.both()]
        manifest = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "labels": {"watch": pair.caller}},
        }
        member.kubectl("create", "-n", "shared", "-f", "-", stdin=json.dumps(manifest).encode())
        for watch in watches:
            watch.until(b'"ADDED"')
        for number in range(10):
            member.kubectl("patch", "configmap", name, "-n", "shared", "-p", json.dumps({"data": {"n": str(number)}}))
        member.kubectl("delete", "configmap", name, "-n", "shared")
        direct, tunnel = ([json.loads(line) for line in watch.until_line(b'"DELETED"')] for watch in watches)
        assert [event["type"] for event in direct] == ["ADDED", *["MODIFIED"] * 10, "DELETED"]
        assert tunnel == direct
        assert all(watch.running for watch in watches)
