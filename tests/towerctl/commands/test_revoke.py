from __future__ import annotations

import json

import pytest

from tests.towerctl.kit import Shell


def test_a_revoked_token_is_no_longer_valid(live: Shell, cluster: str) -> None:
    token = json.loads(live.ok("create", "token", cluster, "-o", "json"))["id"]
    assert live.ok("revoke", "token", token) == f"token {token} of cluster {cluster} revoked\n"
    assert json.loads(live.ok("get", "tokens", token, "-o", "json"))["state"] == "Revoked"


def test_an_unknown_token_is_refused(live: Shell) -> None:
    live("revoke", "token", "nothing").refused("there is no token 'nothing'", "TWR603")


def test_an_unknown_agent_is_refused(live: Shell, cluster: str) -> None:
    live("revoke", "agent", "nobody", "--cluster", cluster).refused("there is no agent 'nobody'", "TWR603")


def test_an_agent_name_that_is_no_label_is_a_usage_error(live: Shell) -> None:
    live("revoke", "agent", "A_B").refused("cannot be the name of an agent", code=2)


def test_a_caller_can_be_revoked_before_having_a_certificate(live: Shell) -> None:
    ran = live("revoke", "caller", "mallory")
    assert "caller mallory revoked" in ran.out
    assert "towerctl credential CLUSTER --refresh" in ran.err
    assert json.loads(live.ok("revoke", "caller", "mallory", "-o", "json"))["kind"] == "Revocation"


@pytest.mark.parametrize("serial", ["1a2b3c", "1A:2B:3C", "0x1a2b3c", "serial=1A2B3C"])
def test_a_certificate_is_named_as_openssl_prints_it(live: Shell, serial: str) -> None:
    assert live.ok("revoke", "certificate", serial) == "certificate 1a2b3c revoked\n"


@pytest.mark.parametrize("serial", ["xyz", "", "1" * 41, "1a 2b"])
def test_what_is_no_serial_number_is_a_usage_error(live: Shell, serial: str) -> None:
    live("revoke", "certificate", serial).refused("is not a serial number", "openssl x509 -noout -serial", code=2)
