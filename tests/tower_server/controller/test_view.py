"""Which cluster an object is about."""

import pytest

from daemon.kube.resources import CLUSTERS, ENDPOINT_SLICES, MEMBERS, SERVICES
from tower_server.controller.view import Watches, cluster_of

OF_EDGE_1 = {"kubernetes.io/service-name": "mc-edge-1"}


@pytest.mark.parametrize(
    ("body", "cluster"),
    [
        ({"kind": "Cluster", "metadata": {"name": "edge-1"}}, "edge-1"),
        ({"kind": "Member", "metadata": {"name": "edge-1"}}, "edge-1"),
        ({"kind": "Service", "metadata": {"name": "mc-edge-1"}}, "edge-1"),
        ({"kind": "Service", "metadata": {"name": "mc-edge-1-external"}}, "edge-1"),
        ({"kind": "Service", "metadata": {"name": "x", "labels": {"tower.kubesphere.io/cluster": "edge-2"}}}, "edge-2"),
        ({"kind": "Service", "metadata": {"name": "tower"}}, ""),
        ({"kind": "Endpoints", "metadata": {"name": "mc-edge-1"}}, "edge-1"),
        (
            {"kind": "EndpointSlice", "metadata": {"name": "x", "labels": {"kubernetes.io/service-name": "mc-edge-1"}}},
            "edge-1",
        ),
        ({"kind": "EndpointSlice", "metadata": {"name": "mc-edge-1"}}, ""),
    ],
)
def test_an_object_leads_to_its_cluster(body, cluster):
    assert cluster_of(body) == cluster


def heard(watches, type_, body, old=None):
    from daemon.kube.reflector import Change

    watches._heard(Change(type_, body, old))


def test_what_changes_is_told_once_and_a_mere_version_is_not():
    told: list[str] = []
    watches = Watches(None, namespace="ks", changed=told.append)
    assert set(watches.reflectors) >= {CLUSTERS, MEMBERS, SERVICES}
    first = {"kind": "Service", "metadata": {"name": "mc-a", "resourceVersion": "1"}, "spec": {"type": "ClusterIP"}}
    heard(watches, "ADDED", first)
    heard(watches, "MODIFIED", {**first, "metadata": {"name": "mc-a", "resourceVersion": "2"}}, first)
    assert told == ["a"]
    heard(watches, "MODIFIED", {**first, "spec": {"type": "NodePort"}}, first)
    heard(watches, "DELETED", first, first)
    assert told == ["a"] * 3


def test_a_name_that_is_free_again_is_told_to_both_who_may_want_it():
    told: list[str] = []
    watches = Watches(None, namespace="ks", changed=told.append)
    body = {"kind": "Service", "metadata": {"name": "mc-a-external", "labels": {"tower.kubesphere.io/cluster": "a"}}}
    heard(watches, "ADDED", body)
    assert told == ["a"]
    heard(watches, "DELETED", body, body)
    assert sorted(told[1:]) == ["a", "a-external"]


def test_slices_are_found_by_their_service_whoever_made_them():
    watches = Watches(None, namespace="ks", changed=lambda _: None)
    body = {"kind": "EndpointSlice", "metadata": {"name": "x1", "labels": {"kubernetes.io/service-name": "mc-a"}}}
    heard(watches, "ADDED", body)
    assert watches.of_service(ENDPOINT_SLICES, "mc-a") == [body]
    moved = {"kind": "EndpointSlice", "metadata": {"name": "x1", "labels": {"kubernetes.io/service-name": "mc-b"}}}
    heard(watches, "MODIFIED", moved, body)
    assert watches.of_service(ENDPOINT_SLICES, "mc-a") == []
    heard(watches, "DELETED", moved, moved)
    assert watches.of_service(ENDPOINT_SLICES, "mc-b") == []
