"""The policy of a member as the two things that must agree: the agent's policy file, and the member's RBAC.

Both are rendered from the same `Policy`, so what the agent would allow is what the apiserver lets it do, name by name.
An empty `resourceNames` means *every* name to Kubernetes: a policy without users or groups therefore renders no rule
for them at all. The binding of the host's admins to `cluster-admin` is an object of its own, which the member's owner
may take away.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import yaml

from gateway.policy import Policy

_API: Final = "rbac.authorization.k8s.io/v1"
_GROUP: Final = "rbac.authorization.k8s.io"
_LABELS: Final = {"app.kubernetes.io/name": "tower-agent", "app.kubernetes.io/managed-by": "tower"}
_READS: Final[list[dict[str, Any]]] = [
    {"nonResourceURLs": ["/readyz", "/version"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["namespaces"], "resourceNames": ["kube-system"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]},
    {"apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews"], "verbs": ["create"]},
]
_FILE_HEAD: Final = """\
# Whom each host may act as in this cluster. The agent refuses everybody else with 403; the same names stand in the
# ClusterRole made from this file, so the apiserver refuses them too. Names are exact: there are no patterns.
#   users, groups        who a caller with a certificate of that host may appear as
#   may_impersonate      which of those callers may use `kubectl --as` (for the users and groups above)
#   allow_system_names   a second, deliberate step without which names of Kubernetes itself (system:...) are refused
"""


def rules_of(policy: Policy) -> dict[str, Any]:
    """One host's rules as they stand in the policy file: what `Policy.from_dict` reads."""
    rules: dict[str, Any] = {"users": sorted(policy.users), "groups": sorted(policy.groups)}
    if policy.may_impersonate:
        rules["may_impersonate"] = sorted(policy.may_impersonate)
    if policy.allow_system_names:
        rules["allow_system_names"] = True
    return rules


def policy_file(policies: Iterable[Policy]) -> str:
    """The agent's policy file, with comments that explain it."""
    document = {"hosts": {policy.host: rules_of(policy) for policy in sorted(policies, key=lambda each: each.host)}}
    return _FILE_HEAD + str(yaml.safe_dump(document, sort_keys=False, width=1000))


def rbac_objects(policy: Policy, *, namespace: str, service_account: str) -> list[dict[str, Any]]:
    """The ClusterRole of the agent for one host, its binding, and the binding of the host's admins.

    Objects of several hosts never share a name, so each can be applied and deleted by itself.
    """
    name = f"tower-agent:{policy.host}"
    subject = {"kind": "ServiceAccount", "name": service_account, "namespace": namespace}
    role = _object("ClusterRole", name, rules=[*_impersonate(policy), *_READS])
    objects = [role, _binding(name, name, subject)]
    admins = f"tower:{policy.host}:cluster-admins"
    if admins in policy.groups:
        objects.append(_binding(admins, "cluster-admin", {"kind": "Group", "name": admins, "apiGroup": _GROUP}))
    return objects


def _impersonate(policy: Policy) -> list[dict[str, Any]]:
    return [
        {"apiGroups": [""], "resources": [kind], "resourceNames": sorted(names), "verbs": ["impersonate"]}
        for kind, names in (("users", policy.users), ("groups", policy.groups))
        if names
    ]


def _binding(name: str, role: str, subject: dict[str, str]) -> dict[str, Any]:
    reference = {"apiGroup": _GROUP, "kind": "ClusterRole", "name": role}
    return _object("ClusterRoleBinding", name, roleRef=reference, subjects=[subject])


def _object(kind: str, name: str, **content: Any) -> dict[str, Any]:
    return {"apiVersion": _API, "kind": kind, "metadata": {"name": name, "labels": dict(_LABELS)}, **content}
