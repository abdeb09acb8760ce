"""Who a caller is: what its TLS connection showed, and how a bearer token is recognised.

Recognition must agree with the apiserver's to the letter (its bearertoken and websocket request authenticators): what
we took for a token and it did not would go through as an anonymous request.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Protocol

BEARER_PROTOCOL: Final = b"base64url.bearer.authorization.k8s.io."
_RAW_URL_BASE64: Final = re.compile(rb"[A-Za-z0-9_-]*")


class ClientIdentity(Protocol):
    """What `certs.verify` says about a caller's certificate."""

    @property
    def user(self) -> str: ...
    @property
    def groups(self) -> tuple[str, ...]: ...
    @property
    def not_after(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Refuse:
    """The answer in place of forwarding: an entry of the fault table and what is wrong here."""

    status: int
    reason: str
    message: str
    code: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Caller:
    """What one connection showed: a good certificate, a bad one (`refused`), or none."""

    identity: ClientIdentity | None = None
    refused: Refuse | None = None


NO_CERTIFICATE: Final = Caller()


def is_bearer(value: bytes) -> bool:
    """Whether the apiserver finds a bearer token in this Authorization value (the first one, if there are several)."""
    text = value.decode("utf-8", "surrogateescape").strip()
    parts = text.split(" ", 2)
    return len(parts) >= 2 and parts[0].lower() == "bearer" and bool(parts[1])


def _protocols(values: list[bytes]) -> list[bytes]:
    return [
        part.decode("utf-8", "surrogateescape").strip().encode("utf-8", "surrogateescape")
        for value in values
        for part in value.split(b",")
    ]


def has_websocket_bearer(values: list[bytes]) -> bool:
    """The same for the values of Sec-WebSocket-Protocol on a real WebSocket request."""
    protocols = _protocols(values)
    tokens = [each[len(BEARER_PROTOCOL) :] for each in protocols if each.startswith(BEARER_PROTOCOL)]
    if len(tokens) != 1 or len(protocols) < 2:  # one token, and another protocol to answer with
        return False
    token = tokens[0]
    if not token or len(token) % 4 == 1 or not _RAW_URL_BASE64.fullmatch(token):
        return False
    try:
        base64.urlsafe_b64decode(token + b"=" * (-len(token) % 4)).decode("utf-8")
    except ValueError:
        return False
    return True


def without_bearer(value: bytes) -> bytes:
    """A Sec-WebSocket-Protocol value without bearer tokens; empty when nothing else was in it."""
    return b", ".join(each for each in _protocols([value]) if each and not each.startswith(BEARER_PROTOCOL))


def forwarded_for(address: str) -> bytes:
    """The caller's IP address for X-Forwarded-For, from `ip`, `ip:port` or `[ip]:port`; empty when it is none."""
    host = address.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        return str(ip_address(host.partition("%")[0])).encode()  # a zone is of another machine, and any text at all
    except ValueError:
        return b""
