"""Whether a request goes on to the apiserver, as whom, and with which head. Pure.

The order is what makes it safe: fields of one hop go first, `Connection`'s names included; then what only a proxy may
say; then the caller is recognised from what is left; our identity is set last. A caller's certificate wins over a
bearer token, which is then removed. The two pools never mix: a request that carries a caller's own token leaves on
connections without any certificate of ours, since the apiserver prefers a connection's certificate to a token.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from daemon.faults import fault
from gateway.caller import Caller, Refuse, has_websocket_bearer, is_bearer, without_bearer
from gateway.fields import ALWAYS_DROPPED, DROPPED_PREFIXES, HOP_BY_HOP, IMPERSONATE, allowed_in_trailer, tokens
from gateway.head import Field, Framing, RequestHead
from gateway.policy import Policy, usable_name
from gateway.status import reason_for

BEARER: Final = "bearer token"  # in records: only the apiserver knows who such a caller is


class PoolName(StrEnum):
    BEARER = "bearer"
    IMPERSONATION = "impersonation"


class Route(NamedTuple):
    """What the connection knows of this request and this apiserver, beside the head."""

    host: bytes
    """The apiserver's authority for Host."""
    authorization: bytes = b""
    """The agent's own Authorization value for the impersonation pool; empty where its certificate speaks for it."""
    forwarded_for: bytes = b""


class Forward(NamedTuple):
    lines: bytes
    """All header lines but for the request line and Audit-ID: the same for every request with the same fields."""
    pool: PoolName
    who: str
    """For the audit line; never a secret."""

    def head(self, head: RequestHead, audit_id: bytes) -> bytes:
        """The head for the apiserver."""
        return b"%b %b HTTP/1.%d\r\n%bAudit-ID: %b\r\n\r\n" % (
            head.method,
            head.target,
            head.minor,
            self.lines,
            audit_id,
        )


class _Kind(StrEnum):
    KEEP = "keep"
    DROP = "drop"
    AUTHORIZATION = "authorization"
    PROTOCOL = "protocol"
    TRAILER = "trailer"
    IMPERSONATE = "impersonate"


# Names of everyday requests, so that most fields cost one look-up.
_KINDS: Final[dict[bytes, _Kind]] = {
    **dict.fromkeys(
        (
            b"accept",
            b"accept-encoding",
            b"content-type",
            b"user-agent",
            b"cache-control",
            b"kubectl-command",
            b"kubectl-session",
            b"origin",
            b"sec-websocket-key",
            b"sec-websocket-version",
            b"x-stream-protocol-version",
        ),
        _Kind.KEEP,
    ),
    **dict.fromkeys(HOP_BY_HOP | ALWAYS_DROPPED | {b"host", b"content-length", b"expect"}, _Kind.DROP),
    b"authorization": _Kind.AUTHORIZATION,
    b"sec-websocket-protocol": _Kind.PROTOCOL,
    b"trailer": _Kind.TRAILER,
}
_HOP_OPTIONS: Final = frozenset({b"close", b"keep-alive", b"upgrade", b"te"})
_IMPERSONATE_USER: Final = b"impersonate-user"
_IMPERSONATE_GROUP: Final = b"impersonate-group"


def decide(head: RequestHead, caller: Caller, policy: Policy, route: Route) -> Forward | Refuse:
    """The verdict on one request. `caller` was checked for expiry and revocation just now.

    It depends on the header fields alone, not on method or target, so that it can be kept for a head that repeats them.
    """
    if caller.refused is not None:
        return caller.refused
    kept, special = _sort(head)
    if caller.identity is not None:
        return _as_certificate(head, kept, special, caller, policy, route)
    authorization = [value for lower, _, value in special if lower == b"authorization"]
    protocols = [value for lower, _, value in special if lower == b"sec-websocket-protocol"]
    websocket = head.upgrade is not None and head.upgrade.lower() == b"websocket"
    if not (authorization and is_bearer(authorization[0])) and not (websocket and has_websocket_bearer(protocols)):
        return _no_credential(bool(authorization))
    own = [b"%b: %b\r\n" % (name, value) for _, name, value in special]
    return Forward(_build(head, kept, own, route), PoolName.BEARER, BEARER)


def _sort(head: RequestHead) -> tuple[list[bytes], list[Field]]:
    """The lines that anyone may send, and the fields that depend on the caller. All others are dropped."""
    kept: list[bytes] = []
    special: list[Field] = []
    named = frozenset(head.connection) - _HOP_OPTIONS if head.connection else None
    kinds = _KINDS
    for field in head.fields:
        lower, name, value = field
        if named and lower in named:
            continue
        kind = kinds.get(lower) or _kind_of(lower)
        if kind is _Kind.KEEP:
            kept.append(b"%b: %b\r\n" % (name, value))
        elif kind is _Kind.DROP:
            continue
        elif kind is _Kind.TRAILER:
            if all(map(allowed_in_trailer, tokens(value))):
                kept.append(b"%b: %b\r\n" % (name, value))
        else:
            special.append(field)
    return kept, special


def _kind_of(lower: bytes) -> _Kind:
    if b"_" in lower:  # some servers take it for a hyphen
        lower = lower.replace(b"_", b"-")
        if lower in _KINDS:
            return _KINDS[lower]
    if lower.startswith(IMPERSONATE):
        return _Kind.IMPERSONATE
    return _Kind.DROP if lower.startswith(DROPPED_PREFIXES) else _Kind.KEEP


def _as_certificate(
    head: RequestHead, kept: list[bytes], special: list[Field], caller: Caller, policy: Policy, route: Route
) -> Forward | Refuse:
    identity = caller.identity
    assert identity is not None
    user, groups, who = identity.user, identity.groups, identity.user
    if not all(map(usable_name, (user, *groups))):
        return refusal(
            "TWR407", "the user or a group of the certificate is empty or holds control characters or spaces"
        )
    asked = [field for field in special if field[0].startswith(IMPERSONATE)]
    if asked:
        other = _impersonated(asked, user, policy)
        if isinstance(other, Refuse):
            return other
        user, groups = other
        who = f"{identity.user} as {user}"
    denial = policy.denies(user, groups)
    if denial is not None:
        return refusal("TWR406", denial, mend="")
    for lower, name, value in special:
        if lower == b"sec-websocket-protocol" and (rest := without_bearer(value)):
            kept.append(b"%b: %b\r\n" % (name, rest))
    own = [b"Impersonate-User: %b\r\n" % user.encode()]
    own += [b"Impersonate-Group: %b\r\n" % group.encode() for group in groups]
    if route.authorization:
        own.append(b"Authorization: %b\r\n" % route.authorization)
    return Forward(_build(head, kept, own, route), PoolName.IMPERSONATION, who)


def _impersonated(asked: list[Field], caller: str, policy: Policy) -> tuple[str, tuple[str, ...]] | Refuse:
    """Whom a certificate caller asks to be, when the policy lets it impersonate at all."""
    denial = policy.denies_impersonation(caller)
    if denial is not None:
        return refusal("TWR405", denial, mend="")
    users: list[str] = []
    groups: list[str] = []
    for lower, name, value in asked:
        if lower not in (_IMPERSONATE_USER, _IMPERSONATE_GROUP):
            return refusal("TWR405", f"{name.decode()} is not relayed for certificate callers; no rule can allow it")
        text = value.decode("utf-8", "replace")
        if not usable_name(text) or "\ufffd" in text:
            return refusal("TWR407", f"the value of {name.decode()} is empty or holds control characters")
        (users if lower == _IMPERSONATE_USER else groups).append(text)
    if len(users) != 1:
        return refusal("TWR405", "a request that impersonates needs exactly one Impersonate-User")
    return users[0], tuple(groups)


def _build(head: RequestHead, kept: list[bytes], own: list[bytes], route: Route) -> bytes:
    """The lines for the apiserver: framing and identity come from us, last."""
    lines = [b"Host: %b\r\n" % route.host, *kept]
    if head.framing is Framing.LENGTH:
        lines.append(b"Content-Length: %d\r\n" % head.length)
    elif head.framing is Framing.CHUNKED:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    if head.expects_continue:
        lines.append(b"Expect: 100-continue\r\n")
    if head.upgrade is not None:
        lines.append(b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.upgrade)
    if route.forwarded_for:
        lines.append(b"X-Forwarded-For: %b\r\n" % route.forwarded_for)
    lines += own
    return b"".join(lines)


def _no_credential(other_scheme: bool) -> Refuse:
    return refusal(
        "TWR401",
        "the Authorization field holds no bearer token, and no client certificate was shown"
        if other_scheme
        else "the request shows neither a client certificate nor a bearer token",
    )


def refusal(code: str, message: str, *, mend: str | None = None) -> Refuse:
    """A refusal by an entry of the fault table."""
    entry = fault(code)
    mend = entry.mend if mend is None else mend
    return Refuse(entry.http_status, reason_for(entry.http_status), message, code, mend)
