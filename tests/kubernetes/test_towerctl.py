"""What the operator's command line gives to kubectl and to the member, taken by the real ones."""

from __future__ import annotations

import pytest

from tests.kubernetes.conftest import MEMBER, view
from tests.lab.controlplane import ControlPlane
from tests.lab.world import TowerWorld

pytestmark = pytest.mark.cluster


def test_kubectl_gets_its_certificates_from_the_plugin(member: ControlPlane, world: TowerWorld) -> None:
    path = world.folder / "plugin.kubeconfig"
    world.towerctl("kubeconfig", MEMBER, "--file", str(path))
    assert b"PRIVATE KEY" not in path.read_bytes()
    caller = view(member, "plugin", path)
    done = caller.kubectl("auth", "whoami", "-o", "jsonpath={.status.userInfo.username}")
    assert (done.code, done.stdout) == (0, b"tower:lab:admin"), done.stderr
    (kept,) = (caller.folder / ".cache" / "tower" / "credentials").iterdir()
    before = kept.read_bytes()
    assert caller.kubectl("get", "namespaces").code == 0
    assert kept.read_bytes() == before, "the second call uses the certificate that is there"


def test_a_plugin_that_fails_tells_the_person_at_kubectl_why(member: ControlPlane, world: TowerWorld) -> None:
    path = world.folder / "gone.kubeconfig"
    world.towerctl("kubeconfig", MEMBER, "--file", str(path))
    path.write_text(path.read_text().replace(str(world.socket), "/nowhere/admin.sock"))
    done = view(member, "gone", path).kubectl("get", "namespaces")
    assert done.code != 0
    assert b"no tower server runs here: /nowhere/admin.sock does not exist" in done.stderr


def test_merged_entries_are_a_context_that_kubectl_can_use(member: ControlPlane, world: TowerWorld) -> None:
    path = member.kubeconfig("somebody")
    world.towerctl("kubeconfig", MEMBER, "--merge", "--file", str(path), "--context-name", "through-tower")
    caller = view(member, "merged", path)
    assert caller.kubectl("--context", "through-tower", "get", "--raw", "/readyz").stdout == b"ok"
    done = caller.kubectl("config", "get-contexts", "-o", "name")
    assert len(done.stdout.split()) == 2


def test_the_whole_manifest_is_taken_by_the_apiserver_and_meets_the_restricted_standard(
    member: ControlPlane, world: TowerWorld
) -> None:
    printed = world.towerctl("manifest", MEMBER, "--namespace", "tower-restricted", "--image", "example/tower:1").stdout
    namespace = b"""
apiVersion: v1
kind: Namespace
metadata:
  name: tower-restricted
  labels: {pod-security.kubernetes.io/enforce: restricted, pod-security.kubernetes.io/warn: restricted}
"""
    member.kubectl("apply", "-f", "-", stdin=namespace)
    try:
        done = member.kubectl("apply", "--dry-run=server", "-f", "-", stdin=printed)
    finally:
        member.kubectl("delete", "namespace", "tower-restricted", "--wait=false")
    assert b"deployment.apps/tower-agent-lab created" in done.stdout
    assert b"Warning" not in done.stderr
