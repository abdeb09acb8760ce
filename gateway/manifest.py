"""The objects that run an agent in a member, for one host. Pure: names and a policy in, Kubernetes objects out.

Every name carries the host's, so that the manifests of two hosts live side by side and are taken away one by one. The
identity Secret is empty: the agent fills it, and applying the manifest again leaves it as it is. The policy stands in
two places, the agent's file and the ClusterRole, both rendered from one `Policy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from daemon import kubesphere
from gateway.policy import Policy
from gateway.rbac import policy_file, rbac_objects
from protocol import defaults

Object = dict[str, Any]
USER: Final = 65532  # what images without a shell call nonroot
CONFIG_DIR: Final = "/etc/tower"
TOKEN_DIR: Final = "/var/run/secrets/tower"  # noqa: S105 - a place, not a secret
HEALTH_PORT: Final = int(defaults.AGENT_HEALTH_ADDRESS.rpartition(":")[2])


@dataclass(frozen=True, slots=True)
class Plan:
    """What the manifest is to say."""

    policy: Policy
    namespace: str
    image: str
    token: str | None
    """None: the identity is in the Secret already, so that no token is needed."""
    replicas: int = defaults.AGENT_REPLICAS
    services: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"tower-agent-{self.policy.host}"

    @property
    def identity_secret(self) -> str:
        return f"{self.name}-identity"

    @property
    def token_secret(self) -> str:
        return f"{self.name}-token"


def rights(plan: Plan) -> list[Object]:
    """Namespace, ServiceAccount and RBAC: what an agent needs wherever it runs."""
    return [
        _object("v1", "Namespace", plan.namespace),
        _namespaced(plan, "v1", "ServiceAccount", plan.name),
        *rbac_objects(plan.policy, namespace=plan.namespace, service_account=plan.name),
        *_kubesphere(plan),
    ]


def objects(plan: Plan) -> list[Object]:
    """Everything, in an order in which it can be applied."""
    kept = [*_identity(plan), *_token(plan), _config(plan)]
    return [*rights(plan), *kept, _fence(plan), _deployment(plan)]


def _identity(plan: Plan) -> list[Object]:
    rule = {
        "apiGroups": [""],
        "resources": ["secrets"],
        "resourceNames": [plan.identity_secret],
        "verbs": ["get", "update", "patch"],
    }
    return [
        _namespaced(plan, "v1", "Secret", plan.identity_secret, type="Opaque"),
        *_allowed(plan, plan.identity_secret, rule),
    ]


def _kubesphere(plan: Plan) -> list[Object]:
    """Where the member offers its KubeSphere: what the agent reads to prove to a host that both have one `jwtSecret`.

    In KubeSphere's own namespace, and in an object of its own: the owner may leave it out and compare by hand.
    """
    if "kubesphere" not in plan.services:
        return []
    rule = {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [kubesphere.CONFIG], "verbs": ["get"]}
    made = _allowed(plan, f"{plan.name}-kubesphere", rule)
    for each in made:
        each["metadata"]["namespace"] = kubesphere.SPACE
    return made


def _allowed(plan: Plan, name: str, rule: Object) -> list[Object]:
    """What the agent may do by one rule."""
    rbac = "rbac.authorization.k8s.io"
    return [
        _namespaced(plan, f"{rbac}/v1", "Role", name, rules=[rule]),
        _namespaced(
            plan,
            f"{rbac}/v1",
            "RoleBinding",
            name,
            roleRef={"apiGroup": rbac, "kind": "Role", "name": name},
            subjects=[{"kind": "ServiceAccount", "name": plan.name, "namespace": plan.namespace}],
        ),
    ]


def _token(plan: Plan) -> list[Object]:
    if plan.token is None:
        return []
    return [
        _namespaced(plan, "v1", "Secret", plan.token_secret, type="Opaque", stringData={"token": plan.token}),
    ]


def _config(plan: Plan) -> Object:
    import yaml

    config: Object = {
        "health_address": f"0.0.0.0:{HEALTH_PORT}",
        "identity_secret": f"{plan.namespace}/{plan.identity_secret}",
        "policy_file": f"{CONFIG_DIR}/policy.yaml",
    }
    if plan.token is not None:
        config["token_file"] = f"{TOKEN_DIR}/token"
    if plan.services:
        config["services"] = dict(plan.services)
    data = {"agent.yaml": yaml.safe_dump(config, sort_keys=False), "policy.yaml": policy_file([plan.policy])}
    return _namespaced(plan, "v1", "ConfigMap", plan.name, data=data)


def _fence(plan: Plan) -> Object:
    """Nobody has to reach an agent: it dials out. Its health and figures are for this cluster's own pods."""
    ingress = [{"from": [{"namespaceSelector": {}}], "ports": [{"port": HEALTH_PORT}]}]
    spec = {
        "podSelector": {"matchLabels": _labels(plan.policy.host)},
        "policyTypes": ["Ingress"],
        "ingress": ingress,
    }
    return _namespaced(plan, "networking.k8s.io/v1", "NetworkPolicy", plan.name, spec=spec)


def _apart(plan: Plan) -> Object:
    """On two nodes where there are two: one of them may go away."""
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": _labels(plan.policy.host)}}
    preferred = [{"weight": 100, "podAffinityTerm": term}]
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}


def _deployment(plan: Plan) -> Object:
    labels = _labels(plan.policy.host)
    pod = {
        "serviceAccountName": plan.name,
        "affinity": _apart(plan),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(plan)],
        "volumes": _volumes(plan),
    }
    spec = {
        "replicas": plan.replicas,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    return _namespaced(plan, "apps/v1", "Deployment", plan.name, spec=spec)


def _container(plan: Plan) -> Object:
    mounts = [
        {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
        {"name": "state", "mountPath": defaults.AGENT_STATE_DIR},
    ]
    if plan.token is not None:
        mounts.append({"name": "token", "mountPath": TOKEN_DIR, "readOnly": True})
    return {
        "name": "agent",
        "image": plan.image,
        "command": ["tower-agent", "run"],
        "ports": [{"name": "health", "containerPort": HEALTH_PORT}],
        # A lost link is not a reason to restart: liveness asks about the process alone.
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": "health"}, "periodSeconds": 20},
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "health"}, "periodSeconds": 10},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": {"requests": {"cpu": "50m", "memory": "96Mi"}, "limits": {"memory": "256Mi"}},
        "volumeMounts": mounts,
    }


def _volumes(plan: Plan) -> list[Object]:
    volumes: list[Object] = [
        {"name": "config", "configMap": {"name": plan.name}},
        {"name": "state", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
    ]
    if plan.token is not None:
        # Optional, since the token is of no use any more once the agent has joined: it may be deleted. The files are
        # root's, so the agent reads them as the group (`fsGroup`), and nobody else does.
        secret = {"secretName": plan.token_secret, "optional": True, "defaultMode": 0o440}
        volumes.append({"name": "token", "secret": secret})
    return volumes


def _labels(host: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "tower-agent", "app.kubernetes.io/instance": host}


def _object(api: str, kind: str, name: str, **content: Any) -> Object:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name}, **content}


def _namespaced(plan: Plan, api: str, kind: str, name: str, **content: Any) -> Object:
    made = _object(api, kind, name, **content)
    made["metadata"] |= {
        "namespace": plan.namespace,
        "labels": _labels(plan.policy.host) | {"app.kubernetes.io/managed-by": "tower"},
    }
    return made
