"""How records are written into objects, and what is read back from objects that others have touched."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tower_server.records import Cluster
from tower_server.store.base import MAX_RECORD_BYTES, Invalid, Kind, Record, Version
from tower_server.store.kubernetes_objects import ANNOTATION, LABEL, MAX_ANNOTATION_BYTES, PLACES


@pytest.mark.parametrize("kind", list(Kind))
def test_what_is_written_is_read_and_carries_the_kind(kind: Kind) -> None:
    data = {"name": "a", "serving_names": ["x"], "deep": {"snake_case": None}}
    body = PLACES[kind].body(kind, "edge-1", data, namespace="tower-system")
    assert PLACES[kind].read(kind, body) == ("edge-1", data)
    assert body["metadata"]["labels"][LABEL] == kind
    assert body["metadata"].get("namespace") == (None if kind is Kind.CLUSTER else "tower-system")


def test_a_cluster_reads_as_a_resource_should() -> None:
    cluster = Cluster(name="edge", uid="u", created=1.5, ports={"kubernetes": 6012}, serving_names=("a",))
    body = PLACES[Kind.CLUSTER].body(Kind.CLUSTER, "edge", cluster.data(), namespace="n")
    assert body["spec"]["servingNames"] == ("a",)
    assert body["spec"]["expectedTunnels"] is None
    found = PLACES[Kind.CLUSTER].read(Kind.CLUSTER, body)
    assert found is not None
    assert Cluster.read(Record(Kind.CLUSTER, found[0], Version("1"), found[1])) == cluster


def test_a_lease_names_its_holder() -> None:
    body = PLACES[Kind.CLAIM].body(Kind.CLAIM, "port-1", {"cluster": "edge", "service": "kubernetes"}, namespace="n")
    assert body["spec"] == {"holderIdentity": "edge.kubernetes"}
    assert PLACES[Kind.CLAIM].body(Kind.CLAIM, "other", {}, namespace="n")["spec"] == {"holderIdentity": "tower"}


@pytest.mark.parametrize("kind", [Kind.SECRET, Kind.CLAIM])
def test_a_name_or_a_size_that_no_object_can_have_is_refused(kind: Kind) -> None:
    place = PLACES[kind]
    with pytest.raises(Invalid):
        place.name(kind, "Not-A-Name")
    with pytest.raises(Invalid, match="at most"):
        place.body(kind, "a", {"x": "y" * MAX_RECORD_BYTES}, namespace="n")
    assert place.name(kind, "a" * 200).endswith("a" * 200)
    if kind is Kind.SECRET:
        with pytest.raises(Invalid, match="at most 253"):
            place.name(kind, "a" * 253)
    else:
        with pytest.raises(Invalid, match="annotation"):
            place.patch(kind, "a", {"x": "y" * MAX_ANNOTATION_BYTES})


def secret(**data: Any) -> dict[str, Any]:
    return {"metadata": {"name": "tower-token-a", "labels": {LABEL: "token"}}, "data": data}


@pytest.mark.parametrize(
    "body",
    [
        secret(),
        secret(record="%%%"),
        secret(record=base64.b64encode(b"[1]").decode()),
        secret(record=base64.b64encode(b"\xff{").decode()),
        {**secret(), "data": None},
        {**secret(record="e30="), "metadata": {"name": "tower-token-a"}},
        {**secret(record="e30="), "metadata": {"name": "tower-token-a", "labels": {LABEL: "agent"}}},
        {**secret(record="e30="), "metadata": {"name": "renamed", "labels": {LABEL: "token"}}},
    ],
)
def test_a_secret_that_is_no_record_is_none(body: dict[str, Any]) -> None:
    assert PLACES[Kind.TOKEN].read(Kind.TOKEN, body) is None


def test_a_lease_without_its_note_is_none() -> None:
    labelled = {"name": "port-1", "labels": {LABEL: "claim"}}
    for notes in (None, {}, {ANNOTATION: "[]"}, {ANNOTATION: "not json"}, {ANNOTATION: "[" * 99_999}):
        body = {"metadata": {**labelled, "annotations": notes}, "spec": {}}
        assert PLACES[Kind.CLAIM].read(Kind.CLAIM, body) is None


def test_a_member_is_a_record_by_its_label() -> None:
    labelled = {"name": "edge", "labels": {LABEL: "cluster"}}
    assert PLACES[Kind.CLUSTER].read(Kind.CLUSTER, {"metadata": labelled}) == ("edge", {})
    assert PLACES[Kind.CLUSTER].read(Kind.CLUSTER, {"metadata": labelled, "spec": 5}) is None
    assert PLACES[Kind.CLUSTER].read(Kind.CLUSTER, {"metadata": {"name": "edge"}, "spec": {"uid": "u"}}) is None
