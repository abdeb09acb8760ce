"""Manifests of deploy/ as kubectl renders them."""

from __future__ import annotations

from typing import Any

import yaml

from tests.lab.controlplane import ControlPlane, run
from tests.lab.hostplane import ROOT

DEPLOY = ROOT / "deploy"


def render(plane: ControlPlane, folder: str) -> list[dict[str, Any]]:
    done = run([str(plane.programs["kubectl"]), "kustomize", str(DEPLOY / folder)], plane.environment())
    assert done.code == 0, done.stderr.decode()
    assert b"Warning" not in done.stderr, done.stderr.decode()
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def namespaces(plane: ControlPlane) -> None:
    for name, level in (("tower-system", "restricted"), ("kubesphere-system", "privileged")):
        meta = {"name": name, "labels": {"pod-security.kubernetes.io/enforce": level}}
        plane.install([{"apiVersion": "v1", "kind": "Namespace", "metadata": meta}])
