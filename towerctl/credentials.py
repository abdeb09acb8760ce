"""The cache of client certificates behind the exec plugin: kubectl asks for one at every start.

One file a caller, mode 0600 in a directory of mode 0700; it holds the finished answer for kubectl, so that the common
case reads one file and nothing else. A certificate is replaced at two thirds of its life. When the server cannot be
asked then, the old one serves until it really ends. A file that others could read or write is not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from daemon.faults import TowerError
from protocol import defaults
from protocol.jsontext import parse_object
from towerctl.client import AdminClient
from towerctl.errors import ServerUnreachable
from towerctl.files import home
from towerctl.output import Object, say

ASK_AGAIN_AFTER: Final = 60.0  # how long kubectl may keep a certificate that could not be renewed
MAX_FILE_BYTES: Final = 64 * 1024


def cache_directory() -> Path:
    """Raises `TowerError` (TWR601) for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME") or ""
    root = Path(base) if os.path.isabs(base) else home("XDG_CACHE_HOME") / ".cache"
    return root / "tower" / "credentials"


def cache_file(place: str, cluster: str, user: str | None, ca: str = "", *, groups: Sequence[str] = ()) -> Path:
    """Servers, clusters, users, groups and CAs are kept apart by a hash: any of them may hold any character."""
    parts = (place, cluster, user or "", ca, *groups)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    return cache_directory() / f"{cluster}-{digest}.json"


def credential(
    client: AdminClient,
    cluster: str,
    *,
    user: str | None,
    groups: Sequence[str] = (),
    ca: str = "",
    refresh: bool = False,
) -> Object:
    """The ExecCredential to print. `ca` is whatever names the CA that the kubeconfig trusts.

    `refresh` makes a new one, and forgets all others of the cluster: a person who types it after a revocation does not
    give the `--ca` and `--socket` that a kubeconfig names.
    """
    path = cache_file(client.place, cluster, user, ca, groups=groups)
    now = time.time()
    held = None if refresh else _read(path)
    if held is not None and now < held["renew_at"]:
        found: Object = held["credential"]
        return found
    try:
        made = _issue(client, cluster, user, groups, now)
    except ServerUnreachable as error:
        if held is None or now >= held["not_after"]:
            raise
        return _until_then(held, now, error)
    _write(path, made)
    if refresh:
        _forget_others(path, cluster)
    issued: Object = made["credential"]
    return issued


def _issue(client: AdminClient, cluster: str, user: str | None, groups: Sequence[str], now: float) -> Object:
    from certs.kubeconfig import exec_credential
    from towerctl.issue import issue

    issued = issue(client, cluster, user=user, groups=groups, ttl=None)
    renew_at = now + (issued.not_after - now) * defaults.RENEW_AT
    return {
        "credential": exec_credential(chain_pem=issued.chain_pem, key_pem=issued.key_pem, not_after=renew_at),
        "renew_at": renew_at,
        "not_after": issued.not_after,
    }


def _until_then(held: Object, now: float, error: TowerError) -> Object:
    from daemon.units import format_age
    from towerctl import times

    say(f"warning: {error.message}; using the certificate that ends in {format_age(held['not_after'] - now)}")
    again = min(held["not_after"], now + ASK_AGAIN_AFTER)
    found: Object = held["credential"]
    return found | {"status": found["status"] | {"expirationTimestamp": times.rfc3339(again)}}


def _read(path: Path) -> Object | None:
    try:
        held = read_private(path, "certificate", limit=MAX_FILE_BYTES)
        usable = (
            held is not None
            and isinstance(held["renew_at"], float)
            and isinstance(held["not_after"], float)
            and isinstance(held["credential"]["status"]["clientKeyData"], str)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return held if usable else None


def _forget_others(path: Path, cluster: str) -> None:
    for other in path.parent.glob(f"{cluster}-*.json"):
        if other != path and re.fullmatch(r"-[0-9a-f]{24}\.json", other.name.removeprefix(cluster)):
            try:
                other.unlink(missing_ok=True)
            except OSError as error:
                say(f"warning: {other} could not be taken away ({error.strerror}): take it away by hand")


def _write(path: Path, made: Object) -> None:
    write_private(path, made, what="the certificate", instead="each call makes a new one")


def read_private(path: Path, what: str, *, limit: int) -> Object | None:
    """The document in a file of the caller's alone; None, and a warning, when others may have read or written it.

    Raises:
        OSError, ValueError: there is none, or none that can be read. Who asks makes a new one, for whatever reason.
    """
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as file:
        about = os.fstat(file.fileno())
        if about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) & 0o077:
            say(f"warning: {path} is open to others and not used; a new {what} is made")
            return None
        return parse_object(file.read(limit))


def write_private(path: Path, made: Object, *, what: str, instead: str) -> None:
    """Keep a document for the caller alone; a warning where that fails, since it can be made anew."""
    from certs.files import replace_file

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        replace_file(path, json.dumps(made).encode())
    except OSError as error:
        say(f"warning: {what} cannot be kept in {path.parent} ({error.strerror}): {instead}")
