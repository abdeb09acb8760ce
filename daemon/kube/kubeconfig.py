"""Reads from a kubeconfig what a process needs of it: one cluster and one credential.

The `kubernetes` library would do more and cost 54 MB of memory in a process that stays. Read as kubectl reads: relative
paths are relative to the file, data wins over a file, `token` over `tokenFile`. Not supported, and refused by name:
passwords, auth providers (kubectl dropped both) and unverified TLS.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon import yamlfile
from daemon.faults import TowerError


@dataclass(frozen=True, slots=True)
class ExecPlugin:
    """A command that prints a credential (client.authentication.k8s.io)."""

    api_version: str
    command: str
    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Kubeconfig:
    """One context of a file. PEM where bytes; `token_file` is read again whenever it is needed."""

    source: str
    server: str
    ca_pem: bytes | None
    server_name: str | None
    certificate_pem: bytes | None
    key_pem: bytes | None
    token: str | None
    token_file: Path | None
    plugin: ExecPlugin | None


def read_kubeconfig(path: Path, context: str | None = None) -> Kubeconfig:
    """Raises TowerError TWR309 (or TWR102 where the file is not YAML) naming what is missing."""
    document, _lines = yamlfile.read(path)
    name = context or document.get("current-context")
    if not isinstance(name, str) or not name:
        raise _unusable(path, "it has no current-context and none was given")
    chosen = _entry(path, document, "contexts", "context", name)
    where = f"kubeconfig {path}, context {name!r}"
    cluster = _entry(path, document, "clusters", "cluster", str(chosen.get("cluster", "")))
    user = _entry(path, document, "users", "user", str(chosen.get("user", "")))
    _refuse_unsupported(path, cluster, user)
    folder = path.parent
    server = cluster.get("server")
    if not isinstance(server, str) or not server:
        raise _unusable(path, f"the cluster of context {name!r} has no server")
    certificate = _data(path, folder, user, "client-certificate")
    key = _data(path, folder, user, "client-key")
    if (certificate is None) != (key is None):
        raise _unusable(path, "it has a client certificate without its key, or a key without its certificate")
    token_file = user.get("tokenFile")
    return Kubeconfig(
        source=where,
        server=server,
        ca_pem=_data(path, folder, cluster, "certificate-authority"),
        server_name=_text(cluster, "tls-server-name"),
        certificate_pem=certificate,
        key_pem=key,
        token=_text(user, "token"),
        token_file=folder / token_file if isinstance(token_file, str) and token_file else None,
        plugin=_plugin(path, user),
    )


def _unusable(path: Path, why: str) -> TowerError:
    return TowerError("TWR309", f"the kubeconfig {path} cannot be used: {why}")


def _entry(path: Path, document: dict[str, Any], section: str, key: str, name: str) -> dict[str, Any]:
    items = document.get(section)
    for item in items if isinstance(items, list) else []:
        if isinstance(item, dict) and item.get("name") == name:
            inner = item.get(key)
            return inner if isinstance(inner, dict) else {}
    raise _unusable(path, f"it has no {key} named {name!r}")


def _refuse_unsupported(path: Path, cluster: dict[str, Any], user: dict[str, Any]) -> None:
    if cluster.get("insecure-skip-tls-verify"):
        raise _unusable(path, "insecure-skip-tls-verify is not accepted; give certificate-authority instead")
    if cluster.get("proxy-url"):
        raise _unusable(path, "proxy-url is not supported: the apiserver must be reachable directly")
    for key in ("username", "password", "auth-provider"):
        if user.get(key):
            raise _unusable(path, f"{key!r} is not supported; use a token, a client certificate or an exec plugin")


def _text(mapping: dict[str, Any], key: str) -> str | None:
    value = mapping.get(key)
    return value if isinstance(value, str) and value else None


def _data(path: Path, folder: Path, mapping: dict[str, Any], key: str) -> bytes | None:
    inline = mapping.get(f"{key}-data")
    if inline:
        try:
            return base64.b64decode(str(inline), validate=True)
        except ValueError as error:
            raise _unusable(path, f"{key}-data is not base64") from error
    name = mapping.get(key)
    if not isinstance(name, str) or not name:
        return None
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise _unusable(path, f"{key} {folder / name}: {error.strerror}") from error


def _plugin(path: Path, user: dict[str, Any]) -> ExecPlugin | None:
    spec = user.get("exec")
    if not isinstance(spec, dict):
        return None
    command, version = _text(spec, "command"), _text(spec, "apiVersion")
    if command is None or version is None:
        raise _unusable(path, "its exec plugin lacks a command or an apiVersion")
    if "/" in command:
        command = str(path.parent / command)
    args, pairs = spec.get("args") or [], spec.get("env") or []
    if not isinstance(args, list) or not isinstance(pairs, list):
        raise _unusable(path, "the args and env of its exec plugin are to be lists")
    try:
        env = tuple((str(pair["name"]), str(pair["value"])) for pair in pairs)
    except (KeyError, TypeError) as error:
        raise _unusable(path, "the env of its exec plugin is to be a list of a name and a value each") from error
    return ExecPlugin(version, command, tuple(map(str, args)), env)
