from __future__ import annotations

import json

import pytest

from daemon.faults import FAULTS
from tests.towerctl.kit import Shell


@pytest.mark.parametrize("code", ["TWR201", "twr201", "201", " TWR201 "])
def test_a_code_is_explained_without_a_server(shell: Shell, code: str) -> None:
    told = shell.ok("explain", code)
    entry = FAULTS["TWR201"]
    for part in (entry.title, entry.meaning, entry.cause, entry.mend):
        assert part in told


def test_every_code_can_be_explained(shell: Shell) -> None:
    listed = shell.ok("explain")
    for code, entry in FAULTS.items():
        assert code in listed
        document = json.loads(shell.ok("explain", code, "-o", "json"))
        assert (document["apiVersion"], document["kind"], document["mend"]) == ("tower/v1", "Fault", entry.mend)
    every = json.loads(shell.ok("explain", "-o", "json"))
    assert (every["kind"], [item["code"] for item in every["items"]]) == ("FaultList", list(FAULTS))


def test_an_unknown_code_names_those_that_are_close(shell: Shell) -> None:
    shell("explain", "TWR2O1").refused("there is no fault code 'TWR2O1'", "did you mean TWR2", "TWR609")


def test_codes_are_completed_with_their_titles(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TOWERCTL_COMPLETE", "zsh_complete")
    monkeypatch.setenv("COMP_WORDS", "towerctl explain twr60")
    monkeypatch.setenv("COMP_CWORD", "2")
    told = shell().out
    assert "TWR601" in told
    assert FAULTS["TWR601"].title in told


def test_a_family_is_listed_as_check_takes_it(shell: Shell) -> None:
    listed = shell.ok("explain", "twr2xx").splitlines()[1:]
    assert [line[:6] for line in listed] == [code for code in FAULTS if code.startswith("TWR2")]


def test_a_family_that_is_none_is_refused(shell: Shell) -> None:
    shell("explain", "9xx").refused("TWR9xx", "TWR609", "towerctl explain")
