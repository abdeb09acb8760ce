"""The demo on a cluster of one's own: asks first, creates only, and takes away what it made and nothing else."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from tests.lab.controlplane import ControlPlane, Done
from tests.lab.ownmember import OwnMember
from tests.lab.processes import LabError

pytestmark = pytest.mark.cluster
SPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tower-own"}}
ACCOUNT = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "agent", "namespace": "tower-own"}}
ROLE = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "tower-own"},
    "rules": [],
}


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def names(member: ControlPlane, kind: str) -> str:
    return member.kubectl("get", kind, "-A", "-o", "jsonpath={.items[*].metadata.name}").text


def test_it_asks_creates_and_takes_away(
    member: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch, "y\n")
    monkeypatch.setenv("KUBECONFIG", "/nonexistent/must-not-be-read")
    with OwnMember(member.admin_kubeconfig, tmp_path) as own:
        own.install([SPACE, ACCOUNT, ROLE])
        own.create_pod("greeter", namespace="tower-own")
        said = capsys.readouterr().out
        for line in (
            "Namespace tower-own",
            "ServiceAccount agent in tower-own",
            "Pod greeter in tower-own",
            member.url,
        ):
            assert line in said
        assert "tower-own" in names(member, "clusterroles")
        token = own.kubectl("create", "token", "agent", "-n", "tower-own").text
        whoami = member.kubectl("auth", "whoami", kubeconfig=own.kubeconfig("agent", token=token)).text
        assert "system:serviceaccount:tower-own:agent" in whoami
    assert "tower-own" not in names(member, "clusterroles")
    assert "greeter" not in names(member, "pods")
    space = member.kubectl("get", "namespace", "tower-own", "-o", "jsonpath={.status.phase}", check=False)
    assert space.text in ("", "Terminating")


@pytest.mark.parametrize("text", ["n\n", "\n", ""])
def test_without_a_yes_nothing_is_made(
    member: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    answer(monkeypatch, text)
    with pytest.raises(LabError, match="nothing was created"), OwnMember(member.admin_kubeconfig, tmp_path) as own:
        own.install([ROLE])
    assert "tower-own" not in names(member, "clusterroles")


def test_what_was_there_before_stays_and_ends_it(
    member: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, "yes\n")
    existing = ROLE | {"metadata": {"name": "view"}}
    with pytest.raises(LabError, match="already exists"), OwnMember(member.admin_kubeconfig, tmp_path) as own:
        own.install([ROLE, existing])
    assert "view" in names(member, "clusterroles").split()
    assert "tower-own" not in names(member, "clusterroles")


def test_what_a_cut_create_has_made_goes_too(
    member: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C while kubectl runs: the apiserver has the object, and nobody was told."""
    answer(monkeypatch, "yes\n")
    plain = OwnMember.kubectl

    def cut(own: OwnMember, *arguments: str, **more: Any) -> Done:
        done = plain(own, *arguments, **more)
        if arguments[0] == "create":
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(OwnMember, "kubectl", cut)
    with pytest.raises(KeyboardInterrupt), OwnMember(member.admin_kubeconfig, tmp_path) as own:
        own.install([ROLE])
    assert "tower-own" not in names(member, "clusterroles")


def test_what_cannot_be_taken_away_is_named_and_no_success(
    member: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, "yes\n")
    kubeconfig = tmp_path / "own.kubeconfig"
    kubeconfig.write_bytes(member.admin_kubeconfig.read_bytes())
    here = ACCOUNT | {"metadata": {"name": "tower-own", "namespace": "shared"}}

    def lose_the_right_to() -> None:
        with OwnMember(kubeconfig, tmp_path) as own:
            own.install([here, ROLE])
            kubeconfig.write_bytes(member.kubeconfig("nobody-here").read_bytes())

    with pytest.raises(LabError, match=r"by hand:\n  clusterrole\S+ tower-own: .*Forbidden.*\n  serviceaccount"):
        lose_the_right_to()
    member.kubectl("delete", "clusterrole", "tower-own")
    member.kubectl("delete", "serviceaccount", "tower-own", "-n", "shared")


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"MEMBER_KUBECONFIG=.*no such file"):
        OwnMember(tmp_path / "missing", tmp_path)
