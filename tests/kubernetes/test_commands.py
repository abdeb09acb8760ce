"""kubectl's plain commands, straight and through the tunnel: the same output, errors and exit code."""

from __future__ import annotations

import itertools
import json

import pytest

from tests.kubernetes.views import Pair, Scrub, View, assert_same
from tests.lab.controlplane import Done

pytestmark = pytest.mark.cluster

READS = {
    "version": ["version", "-o", "json"],
    "list": ["get", "namespaces", "-o", "json"],
    "list as a table": ["get", "configmaps", "-n", "shared", "-o", "wide", "--show-labels"],
    "list everywhere": ["get", "pods", "-A", "-o", "yaml"],
    "get one": ["get", "configmap", "one", "-n", "shared", "-o", "yaml", "--show-managed-fields"],
    "get by label": ["get", "configmaps", "-n", "shared", "-l", "kind=shared", "-o", "name"],
    "jsonpath": ["get", "node", "node-1", "-o", "jsonpath={.status.capacity}"],
    "nothing there": ["get", "configmap", "missing", "-n", "shared"],
    "no such kind": ["get", "unicorns"],
    "empty list": ["get", "secrets", "-n", "shared"],
    "describe a pod": ["describe", "pod", "shared", "-n", "shared"],
    "describe a node": ["describe", "node", "node-1"],
    "explain": ["explain", "pod.spec.containers"],
    "api resources": ["api-resources"],
    "api versions": ["api-versions"],
    "cluster info": ["cluster-info"],
    "can-i": ["auth", "can-i", "--list"],
    "logs": ["logs", "shared", "-n", "shared"],
    "the tail of logs": ["logs", "shared", "-n", "shared", "--tail=1", "--timestamps"],
    "logs of no container": ["logs", "shared", "-n", "shared", "-c", "missing"],
    "exec": ["exec", "-n", "shared", "shared", "--", "sh", "-c", "echo out; echo err >&2; exit 7"],
    "raw discovery": ["get", "--raw", "/apis"],
    "raw openapi v2": ["get", "--raw", "/openapi/v2"],
    "raw openapi v3": ["get", "--raw", "/openapi/v3"],
    "raw nowhere": ["get", "--raw", "/nowhere"],
    "raw readiness": ["get", "--raw", "/readyz?verbose"],
    "metrics nobody serves": ["top", "nodes"],
}


@pytest.mark.parametrize("command", READS)
def test_reading_answers_the_same(pair: Pair, command: str) -> None:
    direct, tunnel = (view.kubectl(*READS[command]) for view in pair.both())
    assert direct.stdout or direct.stderr
    assert_same(pair, direct, tunnel, Scrub(ages=True))


def manifest(namespace: str, value: str) -> bytes:
    document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "made", "namespace": namespace}}
    return json.dumps(document | {"data": {"key": value}}).encode()


WRITES = {
    "create": (["create", "-f", "-", "-o", "json"], "first"),
    "create again": (["create", "-f", "-"], "first"),
    "create of nonsense": (["create", "-f", "-", "--validate=strict"], {"spec": 1}),
    "apply on what was created": (["apply", "-f", "-"], "second"),
    "apply on the server": (["apply", "--server-side", "--field-manager=test", "-f", "-"], "third"),
    "apply on the server, forced": (
        ["apply", "--server-side", "--force-conflicts", "--field-manager=test", "-f", "-"],
        "third",
    ),
    "diff": (["diff", "-f", "-"], "fourth"),
    "replace": (["replace", "-f", "-"], "fifth"),
    "merge patch": (["patch", "configmap", "made", "--type=merge", "-p", '{"data":{"key":"sixth"}}'], None),
    "json patch": (
        ["patch", "configmap", "made", "--type=json", "-p", '[{"op":"add","path":"/data/more","value":"7"}]'],
        None,
    ),
    "a patch that does not apply": (
        ["patch", "configmap", "made", "--type=json", "-p", '[{"op":"remove","path":"/data/none"}]'],
        None,
    ),
    "label": (["label", "configmap", "made", "a=b"], None),
    "annotate": (["annotate", "configmap", "made", "a=b"], None),
    "what came of it": (["get", "configmap", "made", "-o", "yaml"], None),
    "delete": (["delete", "configmap", "made"], None),
    "delete again": (["delete", "configmap", "made"], None),
    "create many": (["create", "configmap", "large", "--from-literal=blob=" + "x" * 100_000, "-o", "json"], None),
    "delete all": (["delete", "configmaps", "--all", "--wait=true"], None),
}
IDENTITY = [
    rb"uid\W+[0-9a-f-]{36}",
    rb"resourceVersion\W+\d+",
    rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    rb"(LIVE|MERGED)-\d+",
]
IDENTITY += [rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ \+\d{4}"]
NUMBERS = itertools.count(1)  # this module is not the only one that runs its tests in the one member


def test_writing_answers_the_same_at_every_step(pair: Pair) -> None:
    """The same steps in a namespace of each view; only names and ids of objects differ."""
    number = next(NUMBERS)
    spaces = {view.name: f"{pair.caller}-{number}-{view.name}" for view in pair.both()}
    for view in pair.both():
        assert view.kubectl("create", "namespace", spaces[view.name]).code == 0
    words = tuple((space.encode(), b"NAMESPACE") for space in spaces.values())
    for step, (arguments, content) in WRITES.items():
        direct, tunnel = (write(view, spaces[view.name], arguments, content) for view in pair.both())
        try:
            assert_same(pair, direct, tunnel, Scrub(words=words, patterns=IDENTITY))
        except AssertionError as error:
            error.add_note(f"at step {step!r}")
            raise


def write(view: View, space: str, arguments: list[str], content: object) -> Done:
    stdin = b""
    if isinstance(content, str):
        stdin = manifest(space, content)
    elif content is not None:
        stdin = json.dumps(json.loads(manifest(space, "")) | content).encode()
    return view.kubectl("-n", space, *arguments, stdin=stdin)
