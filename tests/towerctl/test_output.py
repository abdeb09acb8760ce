from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from towerctl.output import Resource, dump, print_list, print_one, warn_unheard
from towerctl.table import Column

THING = Resource(
    "thing",
    "things",
    (Column("NAME", lambda item: item["name"]), Column("MORE", lambda item: "more", wide=True)),
    lambda item: str(item["name"]),
)
LISTING = {"kind": "ThingList", "items": [{"name": "ä"}, {"name": "b"}]}


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_documents_are_printed_untouched(capsys: pytest.CaptureFixture[str], output: str) -> None:
    print_list(THING, LISTING, output=output, headers=True)
    printed = capsys.readouterr().out
    assert (json.loads(printed) if output == "json" else yaml.safe_load(printed)) == LISTING
    assert "ä" in printed


def test_wide_has_more_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_list(THING, LISTING, output="wide", headers=False)
    assert capsys.readouterr().out == "ä   more\nb   more\n"


def test_no_rows_leave_standard_output_empty(capsys: pytest.CaptureFixture[str]) -> None:
    print_list(THING, {"items": []}, output="table", headers=True)
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "No things found.\n")
    print_list(replace(THING, singular="cluster", plural="clusters"), {"items": []}, output="table", headers=True)
    assert capsys.readouterr().err == "No clusters found. Add one: `towerctl add cluster NAME`\n"


def test_what_is_not_as_of_now_is_said_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_list(THING, {**LISTING, "stale": "things as of then"}, output="name", headers=True)
    assert capsys.readouterr().err == "warning: things as of then\n"
    print_one(THING, {"name": "b", "stale": "b as of then"}, output="name")
    told = capsys.readouterr()
    assert (told.out, told.err) == ("thing/b\n", "warning: b as of then\n")


def test_one_object_is_no_list(capsys: pytest.CaptureFixture[str]) -> None:
    print_one(THING, {"name": "b"}, output="name")
    assert capsys.readouterr().out == "thing/b\n"
    assert dump({"a": 1}, "yaml") == "a: 1\n"


def test_who_has_not_heard_of_what_was_done_is_named_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    warn_unheard({"name": "edge", "unanswered": [{"server": "tower-2", "reason": "no answer within 4 s"}]})
    warn_unheard({"name": "edge", "unanswered": []})
    warn_unheard({"name": "edge"})  # of a host with one server
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        "warning: server tower-2 has not heard of it yet, and looks every 10 s: no answer within 4 s"
    ]
