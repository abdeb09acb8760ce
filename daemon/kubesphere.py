"""What both ends know of KubeSphere: where its own configuration lies, and how they compare a secret in it.

The console of a host works in a member only if both have the same `jwtSecret`. Neither end shows it to the other: the
member's agent sends an HMAC by its own over a nonce of each end, and the server makes the same by the host's. So what
travels is of use for this one comparison, and a secret of KubeSphere's length cannot be guessed from it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any, Final

SPACE: Final = "kubesphere-system"
CONFIG: Final = "kubesphere-config"
KEY: Final = "kubesphere.yaml"
NONCE_BYTES: Final = 32
MAX_CONFIG: Final = 128 * 1024  # what is larger takes seconds to read, and real ones are a few KiB
_CONTEXT: Final = b"tower kubesphere secret v1\x00"


def jwt_secret(config_map: Mapping[str, Any]) -> str:
    """The secret in KubeSphere's ConfigMap, of 3.x or 4.x. ValueError saying what is missing."""
    import yaml

    from daemon.yamlfile import plain

    text = (config_map.get("data") or {}).get(KEY)
    if not isinstance(text, str) or len(text) > MAX_CONFIG:
        raise ValueError(f"it has no {KEY}")
    try:
        document = plain(text)
    except yaml.YAMLError as error:
        raise ValueError(f"its {KEY} is not YAML") from error
    section = document.get("authentication") if isinstance(document, dict) else None
    found = _secret(section) or _secret(section.get("issuer") if isinstance(section, dict) else None)
    if not found:
        raise ValueError(f"its {KEY} has no authentication.jwtSecret")
    return found


def proof(secret: str, *, host: str, cluster: str, server_nonce: bytes, agent_nonce: bytes) -> bytes:
    """What the agent sends and the server compares, in constant time."""
    stated = {"host": host, "cluster": cluster, "server": server_nonce.hex(), "agent": agent_nonce.hex()}
    statement = _CONTEXT + json.dumps(stated, sort_keys=True, separators=(",", ":")).encode()
    return hmac.digest(secret.encode(), statement, hashlib.sha256)


def _secret(section: object) -> str:
    value = section.get("jwtSecret") if isinstance(section, dict) else None
    return value if isinstance(value, str) else ""
