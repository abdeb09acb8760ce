"""What the gateway reports: one record for each request, and problems that came before there was a request.

It calls one method of an injected `Observer` for each request, so the hot path touches nothing global. The path is
recorded without its query, which may hold secrets; of the header only the caller's own name is ever recorded.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Literal, NamedTuple, Protocol

Verb = Literal["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "connect", "other"]

_ON_ONE: Final[dict[bytes, Verb]] = {
    b"GET": "get",
    b"HEAD": "get",
    b"POST": "create",
    b"PUT": "update",
    b"PATCH": "patch",
    b"DELETE": "delete",
}
MAX_LOGGED_PATH: Final = 1024
MAX_KEPT_PATH: Final = 512  # who is refused has chosen his path too, and thousands of long ones would be much memory
_CONNECTS: Final = frozenset({b"exec", b"attach", b"portforward", b"proxy"})


class RequestRecord(NamedTuple):
    """One request, when it ended. A NamedTuple: one is made per request."""

    audit_id: str
    connection_id: str
    caller_address: str
    who: str
    verb: Verb
    method: str
    path: str
    code: int
    fault: str
    """TWR code when the gateway itself answered or cut the request, else empty."""
    bytes_in: int
    bytes_out: int
    duration: float
    answered_after: float
    """Seconds from the request's head to its answer's head; 0 when there was none."""


class Observer(Protocol):
    """Where the gateway reports to. Methods return at once and do not raise."""

    def request(self, record: RequestRecord) -> None: ...
    def tls_failed(self, failure: str, text: str, caller_address: str, connection_id: str) -> None: ...


class NullObserver:
    """Reports to nobody."""

    def request(self, record: RequestRecord) -> None: ...
    def tls_failed(self, failure: str, text: str, caller_address: str, connection_id: str) -> None: ...


def named(method: bytes, target: bytes, upgrade: bool) -> tuple[Verb, str, str]:
    """Verb, method and path of a request as its record says them; the path is cut and has no query."""
    return (_named if len(target) <= MAX_KEPT_PATH else _named.__wrapped__)(method, target, upgrade)


@lru_cache(maxsize=4096)
def _named(method: bytes, target: bytes, upgrade: bool) -> tuple[Verb, str, str]:
    path = target.partition(b"?")[0][:MAX_LOGGED_PATH]
    return verb_of(method, target, upgrade=upgrade), method.decode(), path.decode("latin-1")


def verb_of(method: bytes, target: bytes, *, upgrade: bool) -> Verb:
    """The verb as the apiserver's authoriser and audit log name it. GET with Upgrade is no read: it is `connect`."""
    if upgrade:
        return "connect"
    if b"?" not in target:
        return _verb_of_path(method, target, False)
    path, _, query = target.partition(b"?")
    watches = b"watch=" in query and any(
        part in (b"watch=true", b"watch=1", b"watch=True", b"watch=t") for part in query.split(b"&")
    )
    return _verb_of_path(method, path, watches)


def _verb_of_path(method: bytes, path: bytes, watches: bool) -> Verb:
    parts = [part for part in path.split(b"/") if part]
    if parts[:1] == [b"api"]:
        parts = parts[2:]
    elif parts[:1] == [b"apis"]:
        parts = parts[3:]
    else:
        parts = []
    if len(parts) > 2 and parts[0] == b"namespaces":
        parts = parts[2:]
    if len(parts) > 2 and parts[2] in _CONNECTS:
        return "connect"
    verb = _ON_ONE.get(method, "other")
    if len(parts) == 1:
        if verb == "get":
            return "watch" if watches else "list"
        if verb == "delete":
            return "deletecollection"
    return "watch" if watches and verb == "get" and parts else verb
