from __future__ import annotations

import json

import pytest

from tests.towerctl.kit import Shell
from towerctl.joining import print_join

JOIN = {"id": "t1", "token": "twr1.x", "command": "run this", "uses": 1, "expires": "2999-01-01T00:00:00Z"}


def test_the_command_can_be_piped_while_a_person_reads_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    print_join(JOIN, output="table", document=JOIN)
    told = capsys.readouterr()
    assert told.out == "run this\n"
    assert "(once; it is not shown again)" in told.err


def test_a_name_holds_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    print_join(JOIN, output="name", document=JOIN)
    assert capsys.readouterr().out == "token/t1\n"


def test_what_is_printed_can_be_joined_with(live: Shell, cluster: str) -> None:
    made = json.loads(live.ok("create", "token", cluster, "-o", "json"))
    assert made["token"] in live.ok("create", "token", cluster, "-o", "json") or made["token"].startswith("twr1.")
