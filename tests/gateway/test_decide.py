"""Who gets through, as whom, and with which header lines: the caller table, row by row, and the tricks against it."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from itertools import product

import pytest

from gateway.caller import NO_CERTIFICATE, Caller, Refuse
from gateway.decide import Forward, PoolName, Route, decide, refusal
from gateway.head import parse_request
from gateway.policy import Policy

HOST = "demo"
ADMIN = "tower:demo:admin"
ADMINS = "tower:demo:cluster-admins"
ROUTE = Route(host=b"10.0.0.1:6443", authorization=b"Bearer agents-own", forwarded_for=b"192.0.2.7")
WEBSOCKET = (b"Connection: Upgrade", b"Upgrade: websocket")


@dataclass(frozen=True)
class Identity:
    user: str = ADMIN
    groups: tuple[str, ...] = (ADMINS,)
    not_after: float = 0.0
    serial: int = 1


CERTIFICATE = Caller(identity=Identity())


def ask(
    *lines: bytes,
    caller: Caller = NO_CERTIFICATE,
    policy: Policy | None = None,
    method: bytes = b"GET",
    route: Route = ROUTE,
) -> Forward | Refuse:
    raw = method + b" /api HTTP/1.1\r\nHost: x\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    return decide(parse_request(raw), caller, policy or Policy.default(HOST), route)


def passed(verdict: Forward | Refuse) -> dict[bytes, list[bytes]]:
    """The fields that the apiserver gets, by lower-case name."""
    assert isinstance(verdict, Forward), verdict
    found: dict[bytes, list[bytes]] = {}
    for line in verdict.lines.split(b"\r\n")[:-1]:
        name, value = line.split(b": ", 1)
        found.setdefault(name.lower(), []).append(value)
    return found


def refused(verdict: Forward | Refuse) -> Refuse:
    assert isinstance(verdict, Refuse), verdict
    return verdict


# -- neither -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        (),
        (b"Authorization: Basic YTpi",),
        (b"Authorization: Bearer",),
        (b"Authorization: Bearer ",),
        (b"Authorization: Bearer  two-spaces",),
        (b"Authorization: bearer\ttab",),
        (b"Authorization: Bearer \xc2\xa0",),  # the apiserver trims this and finds no token
        (b"Authorization:",),
        (b"Authorization: Basic YTpi", b"Authorization: Bearer second"),  # the apiserver looks at the first one only
        (b"Proxy-Authorization: Bearer x",),
        (b"X-Remote-User: root",),
        (b"Connection: Authorization", b"Authorization: Bearer x"),  # named as a field of this hop
        (b"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.eA, v4.channel.k8s.io",),  # no WebSocket
        (
            b"Connection: Upgrade",
            b"Upgrade: SPDY/3.1",
            b"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.eA, a",
        ),
        (*WEBSOCKET, b"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.eA"),  # nothing to answer with
        (*WEBSOCKET, b"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.eA==, a"),  # padded
        (*WEBSOCKET, b"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io., a"),
        (*WEBSOCKET, b"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io._w, a"),  # not UTF-8
        (*WEBSOCKET, b"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.a, a"),  # cut short
        (
            *WEBSOCKET,
            b"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.eA, a",
            b"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.eQ",
        ),
    ],
)
def test_without_a_credential_the_answer_is_401(lines: tuple[bytes, ...]) -> None:
    verdict = refused(ask(*lines))
    assert (verdict.status, verdict.reason, verdict.code) == (401, "Unauthorized", "TWR401")
    assert "towerctl kubeconfig" in verdict.mend


# -- bearer ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"Bearer x", b"bearer x", b"BEARER x", b"Bearer x y"])
def test_a_bearer_token_passes_untouched_to_the_pool_without_certificate(value: bytes) -> None:
    verdict = ask(b"Authorization: " + value)
    assert passed(verdict)[b"authorization"] == [value]
    assert verdict.pool is PoolName.BEARER
    assert verdict.who == "bearer token"


def test_the_agents_own_credential_never_goes_with_a_bearer_caller() -> None:
    for lines in (
        (b"Authorization: Bearer garbage", b"Impersonate-Group: system:masters"),
        (b"Authorization: Bearer x",),
    ):
        verdict = ask(*lines)
        assert passed(verdict)[b"authorization"] == [lines[0].split(b": ")[1]]
        assert b"agents-own" not in verdict.lines


def test_a_websocket_bearer_passes_untouched() -> None:
    token = base64.urlsafe_b64encode(b"token-x").rstrip(b"=")
    value = b"v5.channel.k8s.io, base64url.bearer.authorization.k8s.io." + token
    verdict = ask(*WEBSOCKET, b"Sec-WebSocket-Protocol: " + value)
    assert verdict.pool is PoolName.BEARER
    assert passed(verdict)[b"sec-websocket-protocol"] == [value]


def test_a_bearer_caller_keeps_its_impersonation() -> None:
    fields = passed(
        ask(
            b"Authorization: Bearer x",
            b"Impersonate-User: bob",
            b"Impersonate-Group: a",
            b"Impersonate-Group: b",
            b"Impersonate-Uid: 7",
            b"Impersonate-Extra-scopes: s",
        )
    )
    assert fields[b"impersonate-user"] == [b"bob"]
    assert fields[b"impersonate-group"] == [b"a", b"b"]
    assert fields[b"impersonate-uid"] == [b"7"]
    assert fields[b"impersonate-extra-scopes"] == [b"s"]


# -- certificate -------------------------------------------------------------------------------------------------------


def test_a_certificate_caller_is_impersonated_by_the_agents_credential() -> None:
    verdict = ask(b"Accept: a/b", caller=CERTIFICATE)
    fields = passed(verdict)
    assert fields[b"impersonate-user"] == [ADMIN.encode()]
    assert fields[b"impersonate-group"] == [ADMINS.encode()]
    assert fields[b"authorization"] == [b"Bearer agents-own"]
    assert fields[b"accept"] == [b"a/b"]
    assert (verdict.pool, verdict.who) == (PoolName.IMPERSONATION, ADMIN)


def test_a_certificate_wins_over_a_bearer_token_which_is_stripped() -> None:
    verdict = ask(
        b"Authorization: Bearer theirs",
        *WEBSOCKET,
        b"Sec-WebSocket-Protocol: v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.eA",
        b"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.eQ",
        caller=CERTIFICATE,
    )
    fields = passed(verdict)
    assert fields[b"authorization"] == [b"Bearer agents-own"]
    assert fields[b"sec-websocket-protocol"] == [b"v5.channel.k8s.io"]
    assert verdict.pool is PoolName.IMPERSONATION


def test_without_an_own_token_the_pools_certificate_speaks() -> None:
    fields = passed(ask(b"Authorization: Bearer theirs", caller=CERTIFICATE, route=Route(host=b"h")))
    assert b"authorization" not in fields


def test_a_refused_certificate_is_refused_even_with_a_token() -> None:
    expired = Caller(refused=refusal("TWR402", "the certificate of alice expired at 2026-01-01T00:00:00Z"))
    verdict = refused(ask(b"Authorization: Bearer theirs", caller=expired))
    assert verdict.status == 401
    assert "expired at 2026-01-01" in verdict.message


@pytest.mark.parametrize(
    "field",
    [
        b"Impersonate-User: bob",
        b"Impersonate-Group: system:masters",
        b"Impersonate-Uid: 7",
        b"Impersonate-Extra-scopes: s",
        b"impersonate-userextra: x",
    ],
)
def test_a_certificate_caller_may_not_impersonate_by_default(field: bytes) -> None:
    verdict = refused(ask(field, caller=CERTIFICATE))
    assert (verdict.status, verdict.code) == (403, "TWR405")
    assert "(rule `may_impersonate`)" in verdict.message
    assert "may_impersonate:" in verdict.message
    assert f'- "{ADMIN}"' in verdict.message


def test_policy_may_let_a_certificate_caller_impersonate_whom_it_names() -> None:
    policy = Policy.from_dict(HOST, {"users": [ADMIN, "bob"], "groups": [ADMINS, "devs"], "may_impersonate": [ADMIN]})
    verdict = ask(b"Impersonate-User: bob", b"Impersonate-Group: devs", caller=CERTIFICATE, policy=policy)
    fields = passed(verdict)
    assert fields[b"impersonate-user"] == [b"bob"]
    assert fields[b"impersonate-group"] == [b"devs"]
    assert verdict.who == f"{ADMIN} as bob"
    for lines, rule in (
        ((b"Impersonate-User: eve",), "users"),
        ((b"Impersonate-User: bob", b"Impersonate-Group: system:masters"), "groups"),
    ):
        assert f"(rule `{rule}`)" in refused(ask(*lines, caller=CERTIFICATE, policy=policy)).message
    for lines in (
        (b"Impersonate-Group: devs",),
        (b"Impersonate-User: bob", b"Impersonate-User: bob"),
        (b"Impersonate-User: bob", b"Impersonate-Uid: 1"),
        (b"Impersonate-User: bob", b"Impersonate-Extra-x: 1"),
        (b"Impersonate-User:",),
        (b"Impersonate-User: b\xffb",),
        (b"Impersonate-User: b\xc2\x85b",),
    ):
        assert refused(ask(*lines, caller=CERTIFICATE, policy=policy)).status == 403


@pytest.mark.parametrize(
    "name", ["", "a\rb", "a\nb", "a\x00b", "a\x7fb", "a\x85b", "a\u2028b", " admin", "admin ", "admin\t", "a\ud800"]
)
def test_names_that_do_not_survive_a_header_are_refused(name: str) -> None:
    for identity in (Identity(user=name, groups=()), Identity(groups=(ADMINS, name))):
        verdict = refused(ask(caller=Caller(identity=identity)))
        assert (verdict.status, verdict.code) == (403, "TWR407")


def test_names_that_the_policy_lacks_are_refused_with_the_lines_to_add() -> None:
    verdict = refused(ask(caller=Caller(identity=Identity(user="alice", groups=()))))
    assert (verdict.status, verdict.code) == (403, "TWR406")
    assert "(rule `users`)" in verdict.message
    assert 'hosts:\n    demo:\n      users:\n        - "alice"' in verdict.message
    verdict = refused(ask(caller=Caller(identity=Identity(groups=(ADMINS, "ops")))))
    assert "(rule `groups`)" in verdict.message
    assert 'groups:\n        - "ops"' in verdict.message
    verdict = refused(ask(caller=Caller(identity=Identity(user="alice", groups=("dev", ADMINS, "ops")))))
    assert '(rules `users` and `groups`) does not let it act as user "alice" in group "dev" in group "ops"; ' in (
        verdict.message
    )
    assert '    demo:\n      users:\n        - "alice"\n      groups:\n        - "dev"\n        - "ops"\nto the' in (
        verdict.message
    )


def test_a_certificate_caller_gets_no_impersonation_past_by_its_spelling() -> None:
    plain = ask(caller=CERTIFICATE)
    assert ask(b"Impersonate_User: root", b"impersonate_extra_a: x", caller=CERTIFICATE) == plain


@pytest.mark.parametrize("groups", [("system:masters",), ("system:nodes",)])
def test_system_names_never_by_default(groups: tuple[str, ...]) -> None:
    assert refused(ask(caller=Caller(identity=Identity(groups=groups)))).status == 403
    assert refused(ask(caller=Caller(identity=Identity(user="system:admin", groups=())))).status == 403


# -- what nobody may send ----------------------------------------------------------------------------------------------

ALWAYS_DROPPED = [
    b"X-Remote-User: root",
    b"x-remote-group: system:masters",
    b"X-Remote-Extra-Scopes: a",
    b"X-Remote-Uid: 0",
    b"X_Remote_User: root",
    b"X-Remote_Group: system:masters",
    b"Audit_ID: chosen",
    b"Content_Length: 5",
    b"X-Real-Ip: 1.2.3.4",
    b"X-Forwarded-For: 1.2.3.4",
    b"X-Forwarded-Proto: http",
    b"X-Forwarded-Uri: /",
    b"Forwarded: for=1.2.3.4",
    b"Audit-ID: chosen",
    b"Keep-Alive: 5",
    b"Proxy-Connection: keep-alive",
    b"Proxy-Authorization: Basic x",
    b"TE: trailers",
    b"HTTP2-Settings: AAA",
]
CALLERS = {"certificate": (CERTIFICATE, ()), "bearer": (NO_CERTIFICATE, (b"Authorization: Bearer x",))}


@pytest.mark.parametrize(("caller", "lines"), CALLERS.values(), ids=CALLERS.keys())
def test_always_dropped(caller: Caller, lines: tuple[bytes, ...]) -> None:
    plain = ask(*lines, caller=caller)
    for field in ALWAYS_DROPPED:
        assert ask(field, *lines, caller=caller) == plain, field
        assert ask(*lines, field, caller=caller) == plain, field
    assert passed(plain)[b"x-forwarded-for"] == [b"192.0.2.7"]


@pytest.mark.parametrize(
    "named",
    [
        b"Impersonate-User",
        b"impersonate-group",
        b"Authorization",
        b"X-Forwarded-For",
        b"Audit-ID",
        b"Host",
        b"Impersonate-User, Impersonate-Group, Authorization, close",
    ],
)
def test_our_identity_cannot_be_stripped_by_naming_it_in_connection(named: bytes) -> None:
    verdict = ask(b"Connection: " + named, caller=CERTIFICATE)
    assert passed(verdict) == passed(ask(caller=CERTIFICATE))


def test_what_connection_names_goes_for_every_caller() -> None:
    fields = passed(ask(b"Connection: X-Hop, upgrade", b"X-Hop: 1", b"X-End: 2", b"Authorization: Bearer x"))
    assert b"x-hop" not in fields
    assert fields[b"x-end"] == [b"2"]
    assert b"connection" not in fields


def test_framing_cannot_be_stripped_by_naming_it_in_connection() -> None:
    fields = passed(
        ask(b"Connection: Content-Length", b"Content-Length: 5", b"Authorization: Bearer x", method=b"POST")
    )
    assert fields[b"content-length"] == [b"5"]
    fields = passed(
        ask(b"Connection: Transfer-Encoding", b"Transfer-Encoding: chunked", b"Authorization: Bearer x", method=b"PUT")
    )
    assert fields[b"transfer-encoding"] == [b"chunked"]


def test_host_and_length_are_ours() -> None:
    fields = passed(ask(b"Content-Length: 0005", b"Authorization: Bearer x", method=b"POST"))
    assert fields[b"host"] == [b"10.0.0.1:6443"]
    assert fields[b"content-length"] == [b"5"]


def test_an_upgrade_is_said_anew_and_only_where_it_is_real() -> None:
    fields = passed(ask(b"Connection: keep-alive, Upgrade", b"Upgrade: SPDY/3.1", b"Authorization: Bearer x"))
    assert fields[b"connection"] == [b"Upgrade"]
    assert fields[b"upgrade"] == [b"SPDY/3.1"]
    for lines in ((b"Upgrade: websocket",), (b"Connection: Upgrade", b"Upgrade: h2c")):
        fields = passed(ask(*lines, b"Authorization: Bearer x"))
        assert not {b"connection", b"upgrade"} & set(fields)


def test_stream_fields_stay_multivalued_and_in_order() -> None:
    fields = passed(
        ask(
            b"Authorization: Bearer x",
            b"X-Stream-Protocol-Version: v4.channel.k8s.io",
            b"X-Stream-Protocol-Version: v3.channel.k8s.io",
        )
    )
    assert fields[b"x-stream-protocol-version"] == [b"v4.channel.k8s.io", b"v3.channel.k8s.io"]


def test_a_trailer_announcement_passes_unless_it_names_what_may_not() -> None:
    base = (b"Authorization: Bearer x", b"Transfer-Encoding: chunked")
    assert passed(ask(b"Trailer: X-Sum", *base, method=b"POST"))[b"trailer"] == [b"X-Sum"]
    assert b"trailer" not in passed(ask(b"Trailer: X-Sum, Impersonate-User", *base, method=b"POST"))


def test_expect_passes() -> None:
    fields = passed(ask(b"Authorization: Bearer x", b"Expect: 100-Continue", b"Content-Length: 5", method=b"PUT"))
    assert fields[b"expect"] == [b"100-continue"]


def test_the_head_for_the_apiserver_begins_with_the_request_and_ends_with_our_audit_id() -> None:
    head = parse_request(b"DELETE /api/v1/x?a=b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\r\n\r\n")
    verdict = decide(head, NO_CERTIFICATE, Policy(HOST), ROUTE)
    assert isinstance(verdict, Forward)
    assert verdict.head(head, b"abc-1") == (
        b"DELETE /api/v1/x?a=b HTTP/1.1\r\nHost: 10.0.0.1:6443\r\nX-Forwarded-For: 192.0.2.7\r\n"
        b"Authorization: Bearer t\r\nAudit-ID: abc-1\r\n\r\n"
    )


# -- the matrix --------------------------------------------------------------------------------------------------------

TRICKS = [
    (),
    (b"Impersonate-User: system:admin",),
    (b"impersonate-group: system:masters",),
    (b"Impersonate-Uid: 0",),
    (b"Impersonate-Extra-a: b",),
    (b"X-Remote-User: root", b"X-Remote-Group: system:masters"),
    (b"Connection: Impersonate-User, Impersonate-Group",),
    (b"Connection: Authorization",),
    (b"Authorization: Bearer other",),
    (b"Authorization: Basic YTpi",),
    (b"Authorization: Bearer one", b"Authorization: Bearer two"),
    (b"Proxy-Authorization: Bearer x",),
    (b"X-Forwarded-For: 127.0.0.1", b"X-Real-Ip: 127.0.0.1"),
    (b"Audit-ID: x",),
    (b"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.eA, a",),
]
METHODS = [b"GET", b"POST", b"DELETE", b"PATCH", b"HEAD"]
UPGRADES: list[tuple[bytes, ...]] = [(), WEBSOCKET, (b"Connection: Upgrade", b"Upgrade: SPDY/3.1")]
IDENTITIES = {
    "none": NO_CERTIFICATE,
    "admin": CERTIFICATE,
    "not in the policy": Caller(identity=Identity(user="eve", groups=())),
    "revoked": Caller(refused=refusal("TWR403", "the certificate of eve was revoked")),
}


@pytest.mark.parametrize("upgrade", UPGRADES, ids=["plain", "websocket", "spdy"])
@pytest.mark.parametrize("caller", IDENTITIES.values(), ids=IDENTITIES.keys())
def test_no_combination_escalates(caller: Caller, upgrade: tuple[bytes, ...]) -> None:
    """Whatever is sent: own credential, impersonation and pool go together, and only for an admitted certificate."""
    for first, second, method in product(TRICKS, TRICKS, METHODS):
        verdict = ask(*upgrade, *first, *second, caller=caller, method=method)
        if isinstance(verdict, Refuse):
            assert verdict.status in (401, 403)
            continue
        fields = passed(verdict)
        assert not any(name.startswith((b"x-remote-", b"x-real-", b"proxy-")) for name in fields)
        assert fields[b"x-forwarded-for"] == [b"192.0.2.7"]
        assert b"audit-id" not in fields
        if verdict.pool is PoolName.IMPERSONATION:
            assert caller is CERTIFICATE
            assert fields[b"impersonate-user"] == [ADMIN.encode()]
            assert fields[b"impersonate-group"] == [ADMINS.encode()]
            assert fields[b"authorization"] == [b"Bearer agents-own"]
            assert not any(name.startswith((b"impersonate-uid", b"impersonate-extra")) for name in fields)
            assert b"base64url.bearer" not in verdict.lines
        else:
            assert caller is NO_CERTIFICATE
            assert b"agents-own" not in verdict.lines
            assert b"authorization" in fields or b"base64url.bearer" in verdict.lines
