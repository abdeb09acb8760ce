"""The key that a login by an apiserver rests on, kept for as long as its request is good: one request an hour, and not
one for each command. A file of mode 0600 in a directory of mode 0700; one that is open to others is not used."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from certs.errors import CertsError
from certs.keys import PrivateKey, key_from_pem, key_to_pem
from protocol import defaults
from towerctl.credentials import cache_directory
from towerctl.output import say

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
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as file:
            about = os.fstat(file.fileno())
            if about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) & 0o077:
                say(f"warning: {path} is open to others and not used; a new key is made")
                return None
            held = json.loads(file.read(MAX_FILE_BYTES))
        if not 0 <= time.time() - float(held["made"]) < defaults.LOGIN_LIFETIME - EARLY:
            return None
        return LoginKey(str(held["request"]), key_from_pem(str(held["key"]).encode(), what="a login"))
    except (OSError, ValueError, KeyError, TypeError, CertsError):
        return None


def keep(path: Path, held: LoginKey) -> None:
    from certs.files import replace_file

    text = json.dumps({"made": time.time(), "request": held.request, "key": key_to_pem(held.key).decode()})
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        replace_file(path, text.encode())
    except OSError as error:
        say(f"warning: the login cannot be kept in {path.parent} ({error.strerror}): each command makes a new one")
