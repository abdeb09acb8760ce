"""Paths as an apiserver serves them."""

from __future__ import annotations

from daemon.kube.resources import CLUSTERS, LEASES, SECRETS, name_of, namespace_of, version_of


def test_paths_of_both_kinds_of_groups_and_scopes() -> None:
    assert SECRETS.path() == "/api/v1/secrets"
    assert SECRETS.path("n", "a") == "/api/v1/namespaces/n/secrets/a"
    assert LEASES.path("n") == "/apis/coordination.k8s.io/v1/namespaces/n/leases"
    assert CLUSTERS.path("ignored", "edge", "status") == "/apis/cluster.kubesphere.io/v1alpha1/clusters/edge/status"


def test_names_as_rbac_and_manifests_write_them() -> None:
    assert (str(SECRETS), SECRETS.api_version) == ("secrets", "v1")
    assert (str(CLUSTERS), CLUSTERS.api_version) == ("clusters.cluster.kubesphere.io", "cluster.kubesphere.io/v1alpha1")


def test_metadata_may_be_missing() -> None:
    assert (name_of({}), namespace_of({}), version_of({})) == ("", None, "")
    body = {"metadata": {"name": "a", "namespace": "n", "resourceVersion": "7"}}
    assert (name_of(body), namespace_of(body), version_of(body)) == ("a", "n", "7")
