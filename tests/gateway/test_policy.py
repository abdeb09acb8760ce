"""Policies: exact names, no system names by accident, and refusals that name the lines to add."""

from __future__ import annotations

import pytest

from gateway.errors import PolicyError
from gateway.policy import Policy, usable_name


def test_the_default_admits_the_hosts_own_names_and_nobody_else() -> None:
    policy = Policy.default("demo")
    assert policy.denies("tower:demo:admin", ("tower:demo:cluster-admins",)) is None
    assert policy.denies("tower:demo:probe", ()) is None
    assert policy.denies("tower:other:admin", ()) is not None
    assert policy.denies("tower:demo:admin", ("system:masters",)) is not None
    assert policy.denies_impersonation("tower:demo:admin") is not None


def test_an_empty_policy_admits_nobody() -> None:
    assert Policy("demo").denies("anyone", ()) is not None


def test_a_denial_names_the_rule_and_the_lines_that_help() -> None:
    denial = Policy.default("demo").denies('al"ice', ())
    assert denial is not None
    assert '(rule `users`) does not let it act as user "al\\"ice"; ' in denial
    assert '  hosts:\n    demo:\n      users:\n        - "al\\"ice"\n' in denial
    denial = Policy.default("demo").denies("tower:demo:admin", ("system:masters",))
    assert denial is not None
    assert "allow_system_names: true" in denial
    denial = Policy.default("demo").denies_impersonation("alice")
    assert denial is not None
    assert 'does not let user "alice" impersonate others; ' in denial


@pytest.mark.parametrize(
    ("rules", "word"),
    [
        ({"user": ["a"]}, "unknown keys user"),
        ({"users": "alice"}, "list"),
        ({"users": [1]}, "1"),
        ({"users": [" alice"]}, "usable"),
        ({"users": ["a\nb"]}, "usable"),
        ({"users": [""]}, "usable"),
        ({"groups": ["dev*"]}, "patterns"),
        ({"users": ["system:admin"]}, "allow_system_names"),
        ({"groups": ["system:masters"]}, "allow_system_names"),
        ({"may_impersonate": ["system:admin"]}, "allow_system_names"),
        ({"allow_system_names": "yes"}, "true or false"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(rules: dict, word: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.from_dict("demo", rules)
    assert "'demo'" in str(caught.value)
    assert word in str(caught.value)


def test_system_names_need_a_second_step() -> None:
    policy = Policy.from_dict("demo", {"groups": ["system:masters"], "users": ["a"], "allow_system_names": True})
    assert policy.denies("a", ("system:masters",)) is None


def test_usable_names() -> None:
    assert usable_name("tower:demo:admin")
    assert usable_name("Zoë O'Hara@example.org")
    for name in ("", " a", "a ", "a\tb", "a\u2028b", "a\x85b", "a\x00"):
        assert not usable_name(name)
