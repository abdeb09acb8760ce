"""Manifests of deploy/ as kubectl and Helm render them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import yaml

from tests.lab import assets
from tests.lab.controlplane import ControlPlane, run
from tests.lab.hostplane import ROOT

DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "chart"
Objects = list[dict[str, Any]]


def render(plane: ControlPlane, folder: str) -> Objects:
    done = run([str(plane.programs["kubectl"]), "kustomize", str(DEPLOY / folder)], plane.environment())
    assert done.code == 0, done.stderr.decode()
    assert b"Warning" not in done.stderr, done.stderr.decode()
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@dataclass(frozen=True, slots=True)
class Release:
    """What `helm template` would print of the chart."""

    objects: Objects
    crds: Objects
    notes: str


class Refused(Exception):
    """Helm's own words for values that the chart does not take."""


def helm(values: dict[str, Any], *, namespace: str = "tower-system") -> Release:
    """The chart with these values, by Helm's own engine."""
    program = assets.ensure(["chart"])["chart"]
    done = run([str(program), str(CHART), "tower", namespace], {}, json.dumps(values).encode())
    if done.code != 0:
        raise Refused(done.stderr.decode())
    made = json.loads(done.stdout)

    def read(texts: dict[str, str]) -> Objects:
        return [each for text in texts.values() for each in yaml.safe_load_all(text) if each]

    return Release(read(made["manifests"]), read(made["crds"]), made["notes"])


def namespaces(plane: ControlPlane) -> None:
    for name, level in (("tower-system", "restricted"), ("kubesphere-system", "privileged")):
        meta = {"name": name, "labels": {"pod-security.kubernetes.io/enforce": level}}
        plane.install([{"apiVersion": "v1", "kind": "Namespace", "metadata": meta}])
