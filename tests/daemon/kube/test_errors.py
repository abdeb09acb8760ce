"""Each answer of an apiserver becomes the error that says what to do."""

from __future__ import annotations

import json

import pytest

from daemon.kube.errors import (
    AlreadyExists,
    Ask,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    KubeError,
    NotFound,
    NotServed,
    Throttled,
    Unreachable,
    refusal,
)
from daemon.kube.resources import LEASES, MEMBERS, SECRETS


def body(code: int, reason: str, message: str = "told", **details: str) -> bytes:
    return json.dumps(
        {"kind": "Status", "code": code, "reason": reason, "message": message, "details": details}
    ).encode()


@pytest.mark.parametrize(
    ("status", "reason", "details", "kind", "code"),
    [
        (400, "BadRequest", {}, Invalid, "TWR116"),
        (401, "Unauthorized", {}, Forbidden, "TWR115"),
        (403, "Forbidden", {}, Forbidden, "TWR115"),
        (404, "NotFound", {"name": "a"}, NotFound, "TWR116"),
        (404, "NotFound", {}, NotServed, "TWR116"),
        (409, "AlreadyExists", {}, AlreadyExists, "TWR116"),
        (409, "Conflict", {}, Conflict, "TWR116"),
        (410, "Expired", {}, Gone, "TWR116"),
        (422, "Invalid", {}, Invalid, "TWR116"),
        (429, "TooManyRequests", {}, Throttled, "TWR114"),
        (500, "InternalError", {}, Unreachable, "TWR114"),
        (504, "Timeout", {}, Unreachable, "TWR114"),
    ],
)
def test_every_status_has_its_type(
    status: int, reason: str, details: dict[str, str], kind: type[KubeError], code: str
) -> None:
    error = refusal(Ask("get", SECRETS, "n", "a"), "api:6443", status, body(status, reason, **details), retry_after=3)
    assert type(error) is kind
    assert (error.code, error.status, error.word) == (code, status, reason)
    assert "api:6443" in error.message
    assert f"{status} to get secrets a in namespace n: told" in error.message
    assert (error.retry_after == 3) == (status == 429 or status >= 500)


@pytest.mark.parametrize(
    ("ask", "mend"),
    [
        (
            Ask("create", LEASES, "tower-system", "port-1"),
            "add to the Role in namespace tower-system of this account: "
            '{apiGroups: ["coordination.k8s.io"], resources: ["leases"], verbs: ["create"]}',
        ),
        (
            Ask("replace", MEMBERS, None, "edge", "status"),
            "add to the ClusterRole of this account: "
            '{apiGroups: ["tower.kubesphere.io"], resources: ["members/status"], verbs: ["update"]}',
        ),
        (
            Ask("apply", SECRETS, "n", "a"),
            "add to the Role in namespace n of this account: "
            '{apiGroups: [""], resources: ["secrets"], verbs: ["patch"]}',
        ),
    ],
)
def test_a_403_names_the_rule_that_is_missing(ask: Ask, mend: str) -> None:
    assert refusal(ask, "api:6443", 403, body(403, "Forbidden")).mend == mend


def test_a_401_asks_for_another_credential_and_for_no_rule() -> None:
    mend = refusal(Ask("get", SECRETS, "n", "a"), "api:6443", 401, body(401, "Unauthorized")).mend
    assert "renew the token or certificate" in mend
    assert "Role" not in mend


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ('secrets "a" is forbidden: exceeded quota: small, requested: secrets=1', "raise the ResourceQuota"),
        ("unable to create new content in namespace n because it is being terminated", "namespace n is being deleted"),
        ('admission webhook "x.example.com" denied the request: no', "no RBAC rule allows it"),
        ("secrets \"a\" is forbidden: ValidatingAdmissionPolicy 'p' denied request", "no RBAC rule allows it"),
        ('secrets is forbidden: User "u" cannot create resource "secrets"', "add to the Role in namespace n"),
    ],
)
def test_a_403_that_no_rule_would_help_asks_for_none(text: str, mend: str) -> None:
    error = refusal(Ask("create", SECRETS, "n", "a"), "api:6443", 403, body(403, "Forbidden", text))
    assert error.mend.startswith(mend)


def test_an_answer_that_no_apiserver_gave_is_quoted() -> None:
    error = refusal(Ask("get", SECRETS, "n", "a"), "api:6443", 502, b"<html>\n Bad   Gateway </html>" + b"x" * 5000)
    assert "<html> Bad Gateway </html>" in error.message
    assert len(error.message) < 500
    assert "answered 502" in refusal(Ask("get", SECRETS), "api:6443", 502, b"[" * 9999).message
    assert refusal(Ask("get", SECRETS), "api:6443", 502, b"[]").message.endswith("answered 502 to get secrets: []")
