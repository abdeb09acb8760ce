from __future__ import annotations

from daemon.faults import EXIT_FAILED, EXIT_USAGE
from towerctl import errors
from towerctl.main import sentence


def test_a_usage_error_has_its_own_exit_code_and_needs_no_explanation() -> None:
    error = errors.usage("--a goes with --b", mend="add --b")
    assert error.exit_code == EXIT_USAGE
    assert sentence(error) == "error: --a goes with --b\n  mend: add --b"


def test_a_refusal_keeps_the_servers_words() -> None:
    error = errors.AdminRefused(404, "TWR603", "there is no token 'x'", "")
    assert error.exit_code == EXIT_FAILED
    assert "there is no token 'x'" in sentence(error)
    assert "towerctl explain TWR603" in sentence(error)
