"""The host's group, bound by the shipped credential in a member whose agent knows nothing of it.

A native agent's manifest brings its own binding, which the member's owner may take away; a Go agent's has none, so that
certificate callers would be let in by the gateway and refused by the apiserver. What is bound here is taken away again
when native agents serve.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.upstream import Pool
from tower_server.legacy.asking import NotAnswered, ask

_PATH: Final = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"


class BindingError(Exception):
    """What the member's apiserver said, or why it could not be asked."""


def binding_name(host: str) -> str:
    return f"tower-legacy:{host}:cluster-admins"


async def bind(pool: Pool, host: str) -> None:
    """BindingError. One that is there already is fine."""
    document = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": binding_name(host), "labels": {"app.kubernetes.io/managed-by": "tower"}},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": f"tower:{host}:cluster-admins"}
        ],
    }
    await _ask(pool, "POST", _PATH, document, {200, 201, 409})


async def unbind(pool: Pool, host: str) -> None:
    """BindingError. One that is gone already is fine."""
    await _ask(pool, "DELETE", f"{_PATH}/{binding_name(host)}", None, {200, 202, 404})


async def _ask(pool: Pool, method: str, path: str, document: Any, good: set[int]) -> None:
    try:
        answer = await ask(pool, method, path, document)
    except NotAnswered as error:
        raise BindingError(str(error)) from error
    if answer.status not in good:
        raise BindingError(f"the apiserver answered {answer.status}: {answer.message}")
