"""Verbs as the apiserver's own audit log names them."""

from __future__ import annotations

import tracemalloc

import pytest

from gateway.audit import MAX_LOGGED_PATH, named, verb_of


@pytest.mark.parametrize(
    ("method", "target", "verb"),
    [
        (b"GET", b"/api/v1/pods", "list"),
        (b"GET", b"/api/v1/namespaces/a/pods?limit=5", "list"),
        (b"GET", b"/api/v1/namespaces/a/pods?x=1&watch=true", "watch"),
        (b"GET", b"/api/v1/pods?watch=1", "watch"),
        (b"GET", b"/api/v1/pods?watch=false", "list"),
        (b"GET", b"/api/v1/pods?unwatch=true", "list"),
        (b"GET", b"/api/v1/namespaces", "list"),
        (b"GET", b"/api/v1/namespaces/a", "get"),
        (b"GET", b"/api/v1/namespaces/a/pods/b", "get"),
        (b"GET", b"/api/v1/namespaces/a/pods/b/log", "get"),
        (b"HEAD", b"/api/v1/namespaces/a/pods/b", "get"),
        (b"GET", b"/apis/apps/v1/deployments", "list"),
        (b"PATCH", b"/apis/apps/v1/namespaces/a/deployments/b", "patch"),
        (b"PUT", b"/apis/apps/v1/namespaces/a/deployments/b/status", "update"),
        (b"POST", b"/api/v1/namespaces/a/pods", "create"),
        (b"DELETE", b"/api/v1/namespaces/a/pods/b", "delete"),
        (b"DELETE", b"/api/v1/namespaces/a/pods", "deletecollection"),
        (b"POST", b"/api/v1/namespaces/a/pods/b/exec?command=sh", "connect"),
        (b"GET", b"/api/v1/namespaces/a/pods/b/proxy/x/y", "connect"),
        (b"GET", b"/version", "get"),
        (b"OPTIONS", b"/api", "other"),
    ],
)
def test_verbs(method: bytes, target: bytes, verb: str) -> None:
    assert verb_of(method, target, upgrade=False) == verb


def test_get_with_upgrade_is_no_read() -> None:
    assert verb_of(b"GET", b"/api/v1/nodes/n/proxy/exec", upgrade=True) == "connect"


def test_paths_that_anybody_may_send_are_not_kept() -> None:
    tracemalloc.start()
    try:
        for number in range(200):
            path = b"/api/v1/%d/" % number + b"x" * 60_000
            verb, method, shown = named(b"GET", path + b"?token=a", False)
            assert (verb, method) == ("get", "GET")
            assert len(shown) == MAX_LOGGED_PATH
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1_000_000


def test_a_record_has_no_query() -> None:
    for target in (b"/api/v1/pods?token=a", b"/api/v1/pods?token=a" + b"b" * 600):
        assert named(b"GET", target, False) == ("list", "GET", "/api/v1/pods")
