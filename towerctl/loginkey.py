"""The key that a login by an apiserver rests on, kept for as long as its request is good: one request an hour, and not
one for each command. A file of mode 0600 in a directory of mode 0700; one that is open to others is not used."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from certs.errors import CertsError
from certs.keys import PrivateKey, key_from_pem, key_to_pem
from protocol import defaults
from towerctl.credentials import cache_directory, read_private, write_private

EARLY: Final = 300.0  # seconds before its end that a request is not used any more
MAX_FILE_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class LoginKey:
    """A key, and the name of the request that ties it to a person."""

    request: str
    key: PrivateKey


def login_file(apiserver: str, namespace: str, context: str) -> Path:
    digest = hashlib.sha256("\0".join((apiserver, namespace, context)).encode()).hexdigest()[:24]
    return cache_directory().parent / "logins" / f"{digest}.json"


def kept(path: Path) -> LoginKey | None:
    """None when there is nothing that may be used, for whatever reason: then a new one is made."""
    try:
        held = read_private(path, "key", limit=MAX_FILE_BYTES)
        if held is None or not 0 <= time.time() - float(held["made"]) < defaults.LOGIN_LIFETIME - EARLY:
            return None
        return LoginKey(str(held["request"]), key_from_pem(str(held["key"]).encode(), what="a login"))
    except (OSError, ValueError, KeyError, TypeError, CertsError):
        return None


def keep(path: Path, held: LoginKey) -> None:
    made = {"made": time.time(), "request": held.request, "key": key_to_pem(held.key).decode()}
    write_private(path, made, what="the login", instead="each command makes a new one")
