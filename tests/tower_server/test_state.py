"""The verdict: facts in, state and cause out; never Ready without a fresh request that got through."""

import dataclasses

import pytest

from tower_server.state import Ended, Facts, ProbeResult, judge

NOW = 1_800_000_000.0
GOOD = ProbeResult(NOW - 5, True, status=200)
BAD = ProbeResult(NOW - 1, False, "TWR301", "10.0.0.1:443 refused")
UP = Facts(now=NOW, tunnels=1, expected=1, connected=NOW, probe=GOOD, last_ok=NOW - 5)


def verdict(**changes):
    found = judge(dataclasses.replace(UP, **changes))
    return found.state, found.ready, found.code


def test_a_fresh_probe_that_got_through_is_connected():
    assert verdict() == ("Connected", "True", "")


@pytest.mark.parametrize("probe", [None, dataclasses.replace(GOOD, at=NOW - 31)])
def test_without_a_fresh_probe_nothing_is_claimed(probe):
    assert verdict(probe=probe) == ("Unknown", "Unknown", "TWR308")


def test_one_failed_probe_after_a_good_one_degrades_and_the_next_ends_ready():
    assert verdict(probe=BAD, failures=1) == ("Degraded", "True", "TWR301")
    assert verdict(probe=BAD, failures=2) == ("ApiserverDown", "False", "TWR301")
    assert verdict(probe=BAD, failures=1, last_ok=None) == ("ApiserverDown", "False", "TWR301")
    assert verdict(probe=BAD, failures=1, last_ok=NOW - 31) == ("ApiserverDown", "False", "TWR301")


def test_the_agents_report_explains_a_failure_but_never_makes_one():
    report = {"report_code": "TWR304", "report_text": "the CA is another"}
    assert verdict(probe=BAD, failures=2, **report) == ("ApiserverDown", "False", "TWR304")
    assert verdict(**report) == ("Connected", "True", "")


@pytest.mark.parametrize("code", ["TWR305", "TWR406"])
def test_a_refused_credential_or_policy_is_auth_failed(code):
    probe = dataclasses.replace(BAD, code=code)
    assert verdict(probe=probe, failures=2, report_code="TWR301") == ("AuthFailed", "False", code)


@pytest.mark.parametrize("code", ["TWR117", "TWR411", "TWR412"])
def test_a_probe_that_finds_no_room_does_not_blame_the_apiserver(code):
    full = dataclasses.replace(BAD, code=code)
    assert verdict(probe=full, failures=2) == ("Degraded", "False", code)
    assert verdict(probe=full, failures=2, report_code="TWR301") == ("ApiserverDown", "False", "TWR301")


def test_fewer_tunnels_a_failing_one_and_drift_are_degraded_while_serving():
    assert verdict(expected=2) == ("Degraded", "True", "TWR202")
    assert verdict(tunnels=2, failing="its apiserver refuses") == ("Degraded", "True", "TWR202")
    assert verdict(drift="policy names alice, RBAC does not") == ("Degraded", "True", "TWR307")
    assert verdict(stale="the list is of yesterday", drift="x") == ("Degraded", "True", "TWR508")


def test_without_a_tunnel_the_cause_is_the_last_thing_that_happened():
    closed = Ended(NOW - 60, "DEAD_PEER", "nothing heard for 15 s")
    refused = Ended(NOW - 30, "TWR209", "revoked")
    down = {"tunnels": 0, "last_close": closed}
    assert verdict(tunnels=0, connected=None) == ("NeverConnected", "Unknown", "TWR200")
    assert verdict(**down) == ("TunnelDown", "False", "TWR201")
    assert verdict(**down, refused=refused) == ("AuthFailed", "False", "TWR209")
    assert verdict(**down, refused=Ended(NOW - 90, "TWR209", "revoked")) == ("TunnelDown", "False", "TWR201")
    assert "nothing heard for 15 s" in judge(dataclasses.replace(UP, **down)).cause
    assert "2027-01-15T07:59:00Z" in judge(dataclasses.replace(UP, **down)).cause


def test_after_a_restart_the_store_says_that_there_was_one():
    assert verdict(tunnels=0, connected=NOW - 100) == ("TunnelDown", "False", "TWR201")
