"""When the kubeconfig in a Cluster resource is written anew: rarely, since each rewrite makes its readers reconnect.

It is kept while it leads to this cluster, ends at this tower's root and has not reached two thirds of its life. It is
written only while a request gets through, so that nobody is handed a key to a closed door and no outage rewrites it.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Final, Literal

import yaml

from certs.ca import Authority
from certs.errors import CertsError
from certs.keys import generate_key, key_to_pem
from certs.kubeconfig import Connection, embedded, to_yaml
from certs.peers import rfc3339
from certs.revocation import RevocationList
from certs.verify import TrustBundle, load_chain
from daemon.yamlfile import plain
from protocol import defaults

LIFETIME: Final = defaults.CLUSTER_KUBECONFIG_DAYS * 86400.0
MAX_BYTES: Final = 64 * 1024  # one cluster, one user: more is not ours
MAX_PARTS: Final = 200  # lines, commas and brackets: what has more is not ours either, and takes seconds to read


@dataclass(frozen=True, slots=True)
class Decision:
    """`renew_at` is when a kept one is due; `why` says what is wrong with it, or what its rewrite waits for."""

    action: Literal["keep", "write", "wait"]
    why: str
    renew_at: float | None = None


def decide(
    held: object,
    connection: Connection,
    *,
    bundle: TrustBundle,
    revocations: RevocationList | None,
    now: float,
    healthy: bool,
) -> Decision:
    """`held` is what stands in the resource: base64 of a kubeconfig, nothing, or anything else."""
    why, renew_at = _flaw(held, connection, bundle, revocations, now)
    if not why:
        return Decision("keep", "", renew_at)
    return Decision("write" if healthy else "wait", why)


def issue(authority: Authority, connection: Connection, *, cluster: str, now: float) -> str:
    """A kubeconfig for the host's own controllers, as base64 for the resource."""
    key = generate_key()
    user, group = f"tower:{authority.host}:admin", f"tower:{authority.host}:cluster-admins"
    issued = authority.issue_client(user, (group,), public_key=key.public_key(), at=now, ttl=LIFETIME)
    config = embedded(connection, name=cluster, chain_pem=issued.chain_pem, key_pem=key_to_pem(key))
    return base64.b64encode(to_yaml(config).encode()).decode()


def _flaw(
    held: object, connection: Connection, bundle: TrustBundle, revocations: RevocationList | None, now: float
) -> tuple[str, float | None]:
    """What is wrong with it, empty for nothing, and when it is due."""
    if not held:
        return "there is none yet", None
    if not isinstance(held, str) or len(held) > MAX_BYTES:
        return "it is not one that this tower wrote", None
    try:
        text = base64.b64decode(held, validate=True)
        if sum(map(text.count, (b"\n", b",", b"[", b"{"))) > MAX_PARTS:
            return "it is not one that this tower wrote", None
        config = plain(text)
        cluster: dict[str, Any] = config["clusters"][0]["cluster"]
        user: dict[str, Any] = config["users"][0]["user"]
        ca = base64.b64decode(cluster["certificate-authority-data"], validate=True)
        chain = load_chain(base64.b64decode(user["client-certificate-data"], validate=True))
    except (yaml.YAMLError, CertsError, LookupError, TypeError, ValueError):
        return "it cannot be read", None
    if ca != connection.ca_pem:
        return "it trusts another root than this tower's", None
    if cluster.get("server") != connection.server or cluster.get("tls-server-name") != connection.tls_server_name:
        return (
            f"it leads to {str(cluster.get('server'))[:200]}, and callers reach this cluster at {connection.server}",
            None,
        )
    try:
        validity = bundle.verify_client(chain, now, revocations=revocations).validity
    except CertsError as error:
        return f"its certificate is of no use: {error.text}", None
    if now >= validity.renew_at:
        return f"it ends at {rfc3339(validity.not_after)}, and two thirds of its life are over", None
    return "", validity.renew_at
