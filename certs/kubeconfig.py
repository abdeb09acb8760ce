"""Kubeconfigs for callers of a cluster, and merging one into a file that somebody else's tools write too.

A kubeconfig of a tower names the address to dial and, apart from it, the name to verify (`tls-server-name`), so that
the address may be anything that leads to the cluster's port. Credentials are either a plugin (`exec`), which gets
short-lived certificates as they are needed, or embedded with the lifetime of the certificate.

Merging keeps every field that it does not know (comments are lost, as with every tool that writes kubeconfigs), takes
the lock file that kubectl takes, and replaces the file in one step with mode 0600. An entry of the same name that is
not this one is never overwritten unasked.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from certs.errors import KubeconfigError
from certs.files import LOCK_DEADLINE, replace_file
from certs.peers import rfc3339

EXEC_API: Final = "client.authentication.k8s.io/v1"
INSTALL_HINT: Final = (
    "towerctl is needed to get a certificate for this cluster.\n"
    "Install the package tower-tunnel, and see that towerctl is on the PATH."
)
MAX_KUBECONFIG_BYTES: Final = 8 * 1024 * 1024
_LISTS: Final = {"clusters": "cluster", "users": "user", "contexts": "context"}
_LOCK_RETRY: Final = 0.05

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Connection:
    """How callers reach a cluster: URL, the name in its certificate, and the root that signed it."""

    server: str
    tls_server_name: str
    ca_pem: bytes


def embedded(connection: Connection, *, name: str, chain_pem: bytes, key_pem: bytes) -> Config:
    """A kubeconfig that holds a certificate and its key: good until the certificate ends, and as secret as the key."""
    return _config(connection, name, {"client-certificate-data": _data(chain_pem), "client-key-data": _data(key_pem)})


def with_plugin(connection: Connection, *, name: str, command: str, arguments: Sequence[str]) -> Config:
    """A kubeconfig that holds no secret: `command` fetches a certificate whenever the last one has run out."""
    plugin = {
        "apiVersion": EXEC_API,
        "command": command,
        "args": list(arguments),
        "env": None,
        "installHint": INSTALL_HINT,
        "interactiveMode": "Never",
        "provideClusterInfo": False,
    }
    return _config(connection, name, {"exec": plugin})


def exec_credential(*, chain_pem: bytes, key_pem: bytes, not_after: float) -> Config:
    """What the plugin prints (as JSON) for kubectl."""
    return {
        "apiVersion": EXEC_API,
        "kind": "ExecCredential",
        "status": {
            "expirationTimestamp": rfc3339(not_after),
            "clientCertificateData": chain_pem.decode(),
            "clientKeyData": key_pem.decode(),
        },
    }


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(config, sort_keys=False)


def write(path: Path, config: Config) -> None:
    """A file of its own, mode 0600; refuses to replace one that is there."""
    with _locked(path):
        if path.exists():
            raise KubeconfigError(f"{path} exists already", "name another file, or merge into this one")
        _replace(path, config)


def merge(
    path: Path, addition: Config, *, overwrite: bool = False, use: bool = False, deadline: float = LOCK_DEADLINE
) -> None:
    """Put the entries of `addition` into the kubeconfig at `path`, which is made when it is missing.

    `overwrite` allows entries of the same name that are another cluster's or user's to be replaced; `use` makes the
    context the current one (it also becomes that when there is none); `deadline` bounds the wait for the file's lock.
    KubeconfigError leaves the file as it was.
    """
    with _locked(path, deadline=deadline):
        path = Path(os.path.realpath(path))  # a link stays a link; the lock is beside the name, where kubectl looks
        config = read(path) if path.exists() else _empty()
        if not overwrite:
            _refuse_clash(path, config, addition)
        for section in _LISTS:
            _put(config, section, addition[section])
        if use or not config.get("current-context"):
            config["current-context"] = addition["current-context"]
        _replace(path, config)


def read(path: Path) -> Config:
    """The kubeconfig at `path`; KubeconfigError when it is not one."""
    mend = "correct the file, or name another one"
    try:
        if not path.is_file():
            raise KubeconfigError(f"{path} is no regular file", mend)
        if path.stat().st_size > MAX_KUBECONFIG_BYTES:
            raise KubeconfigError(f"{path} is too large for a kubeconfig", mend)
        config = yaml.safe_load(path.read_bytes())
    except OSError as exc:
        raise KubeconfigError(f"{path} cannot be read: {exc.strerror}", mend) from exc
    except (yaml.YAMLError, ValueError, RecursionError) as exc:  # ValueError: such as a date that is none
        mark = getattr(exc, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise KubeconfigError(f"{path} is not YAML{where}", mend) from exc
    if config is None:
        return _empty()
    if not isinstance(config, dict) or config.get("kind", "Config") != "Config":
        raise KubeconfigError(f"{path} is not a kubeconfig", mend)
    for section, inner in _LISTS.items():
        rows = config.get(section)
        if rows is None:
            config[section] = rows = []
        if not isinstance(rows, list) or not all(isinstance(row, dict) and "name" in row for row in rows):
            raise KubeconfigError(f"{path}: {section!r} is not a list of named entries with a {inner!r} each", mend)
    return config


def entries_for(config: Config, *, server: str, tls_server_name: str) -> list[tuple[str, str]]:
    """The kind (`context`, `cluster`, `user`) and name of each entry of `config` that is there for this cluster alone:
    those that `merge` put in, and contexts that somebody added to them."""
    wanted = {"server": server, "tls-server-name": tls_server_name}
    names = [row["name"] for row in config["clusters"] if wanted.items() <= _inside(row, "cluster").items()]
    contexts = [row["name"] for row in config["contexts"] if _inside(row, "context").get("cluster") in names]
    users = [row["name"] for row in config["users"] if row["name"] in names]
    found = (("context", contexts), ("cluster", names), ("user", users))
    return [(kind, name) for kind, listed in found for name in listed if isinstance(name, str)]


def _inside(row: Config, inner: str) -> Config:
    held = row.get(inner)
    return held if isinstance(held, dict) else {}


def _config(connection: Connection, name: str, user: Config) -> Config:
    cluster = {
        "server": connection.server,
        "tls-server-name": connection.tls_server_name,
        "certificate-authority-data": _data(connection.ca_pem),
    }
    return _empty() | {
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }


def _empty() -> Config:
    return {"apiVersion": "v1", "kind": "Config", "clusters": [], "users": [], "contexts": []}


def _data(pem: bytes) -> str:
    return base64.b64encode(pem).decode()


def _named(config: Config, section: str, name: str) -> Config | None:
    return next((row for row in config[section] if row["name"] == name), None)


def _refuse_clash(path: Path, config: Config, addition: Config) -> None:
    """Refuse a name that is taken by another cluster; the same cluster's older entry may be renewed."""
    name = addition["current-context"]
    mend = "name the context otherwise with --context-name, or replace what is there with --overwrite"
    context = _named(config, "contexts", name)
    wanted = addition["contexts"][0]["context"]
    held = (context or {}).get("context") or {}
    if context is not None and (held.get("cluster"), held.get("user")) != (wanted["cluster"], wanted["user"]):
        raise KubeconfigError(
            f"{path} has a context {name!r} already: cluster {held.get('cluster')!r}, user {held.get('user')!r}", mend
        )
    cluster = (_named(config, "clusters", name) or {}).get("cluster")
    ours = addition["clusters"][0]["cluster"]
    if cluster is not None and any(cluster.get(key) != ours[key] for key in ("tls-server-name", _CA)):
        same = cluster.get("tls-server-name") == ours["tls-server-name"]  # before a rotation, or of a tower before this
        what = f"cluster {name!r} already, with another CA" if same else f"another cluster {name!r} already"
        raise KubeconfigError(f"{path} has {what}, at {cluster.get('server')!r}", mend)
    user = _named(config, "users", name)
    if user is not None and cluster is None:
        raise KubeconfigError(f"{path} has a user {name!r} already that belongs to no cluster of that name", mend)


_CA: Final = "certificate-authority-data"


def _put(config: Config, section: str, rows: list[Config]) -> None:
    """Replace what we write in an entry, and keep the fields that somebody added (a namespace, extensions)."""
    inner = _LISTS[section]
    for row in rows:
        kept = _named(config, section, row["name"])
        if kept is None:
            config[section].append(row)
        elif section == "contexts" and isinstance(kept.get(inner), dict):
            kept[inner] |= row[inner]
        else:
            extensions = (kept.get(inner) or {}).get("extensions")
            kept[inner] = row[inner] | ({"extensions": extensions} if extensions else {})


def _replace(path: Path, config: Config) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, to_yaml(config).encode())
    except OSError as exc:
        raise KubeconfigError(
            f"{path} cannot be written: {exc.strerror}", "name a file that this user may write, with room on its disk"
        ) from exc


@contextmanager
def _locked(path: Path, *, deadline: float = LOCK_DEADLINE) -> Iterator[None]:
    """Hold `<path>.lock`, made exclusively, as kubectl does; KubeconfigError after `deadline` seconds."""
    if not path.name:
        raise KubeconfigError(f"{str(path)!r} is no name of a file", "name a file that this user may write")
    lock = path.with_name(path.name + ".lock")
    until = time.monotonic() + deadline
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            break
        except FileExistsError:
            if time.monotonic() >= until:
                raise KubeconfigError(
                    f"{path} is locked by another program: {lock} exists",
                    "wait for it; if none is running, remove the lock file",
                ) from None
            time.sleep(_LOCK_RETRY)
        except OSError as exc:
            raise KubeconfigError(
                f"{path} cannot be locked: {exc.strerror}", "name a file in a directory that this user may write"
            ) from exc
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
