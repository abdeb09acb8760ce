from __future__ import annotations

import errno
import os
import re
import socket
from pathlib import Path

import pytest

from daemon.faults import FAULTS, TowerError, cannot_listen, fault

ROOT = Path(__file__).parents[2]
ROOMS = ("protocol", "certs", "gateway", "daemon", "tower_server", "tower_agent", "towerctl", "deploy")
CODE = re.compile(r"\bTWR[0-9]{3}\b")


def _codes(*places: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for place in places:
        for file in [place] if place.is_file() else sorted(place.rglob("*")):
            if file.suffix in (".py", ".md", ".yaml", ".yml") and file.name != "faults.py":
                for code in CODE.findall(file.read_text("utf-8")):
                    found.setdefault(code, str(file.relative_to(ROOT)))
    return found


def test_every_code_that_is_used_stands_in_the_table() -> None:
    used = _codes(*(ROOT / room for room in ROOMS), ROOT / "docs", ROOT / "README.md")
    assert {code: where for code, where in used.items() if code not in FAULTS} == {}


def test_every_code_of_the_table_is_used_by_the_product() -> None:
    used = _codes(*(ROOT / room for room in ROOMS))
    assert sorted(FAULTS.keys() - used.keys()) == []


@pytest.mark.parametrize("code", sorted(FAULTS))
def test_an_entry_is_complete(code: str) -> None:
    entry = FAULTS[code]
    assert re.fullmatch(r"TWR[1-6][0-9]{2}", code)
    assert entry.code == code
    assert 400 <= entry.http_status <= 599
    assert re.fullmatch(r"([A-Z][a-z0-9]+)+", entry.reason), "a reason is one CamelCase word"
    for sentence in (entry.meaning, entry.cause):
        assert sentence.endswith(".")
        assert "  " not in sentence
        assert len(sentence) > 15
    assert not entry.title.endswith(".")
    assert entry.mend
    assert entry.mend[-1] not in ".;"
    assert entry.mend[0] == entry.mend[0].lower() or entry.mend.startswith("`")


def test_titles_and_reasons_are_unique() -> None:
    assert len({entry.title for entry in FAULTS.values()}) == len(FAULTS)
    assert len({entry.reason for entry in FAULTS.values()}) == len(FAULTS)


def test_an_error_reads_as_code_message_and_mend() -> None:
    error = TowerError("TWR103", "cannot listen on 127.0.0.1:9443: address in use")
    assert str(error) == f"TWR103: cannot listen on 127.0.0.1:9443: address in use; mend: {fault('TWR103').mend}"
    assert (error.code, error.http_status, error.reason, error.exit_code) == ("TWR103", 500, "AddressUnavailable", 1)


def test_an_error_can_bring_its_own_mend_and_usage_exits_2() -> None:
    assert str(TowerError("TWR601", "no cluster named", mend="name one")).endswith("; mend: name one")
    assert TowerError("TWR601", "x").exit_code == 2
    assert TowerError("TWR602", "x", exit_code=3).exit_code == 3
    assert TowerError("TWR221", "x", retry_after=2.5).retry_after == 2.5


@pytest.mark.parametrize(
    ("error", "why", "mend"),
    [
        (OSError(errno.EADDRINUSE, "while attempting to bind"), "Address already in use", "`ss -ltnp` names it"),
        (OSError(errno.EACCES, ""), "Permission denied", f"a right that uid {os.geteuid()} has not"),
        (OSError(errno.EADDRNOTAVAIL, ""), "Cannot assign requested address", "an address of this machine"),
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "Name or service not known",
            "another `listen`: an address of this machine",
        ),
        (OSError("reuse_port is not supported"), "reuse_port is not supported", "another `listen`"),
    ],
)
def test_an_address_that_cannot_be_bound_comes_with_the_mend_for_its_cause(error: OSError, why: str, mend: str) -> None:
    said = cannot_listen("the port :443", error, key="listen")
    assert (said.code, said.message) == ("TWR103", f"the port :443 cannot be listened on: {why}")
    assert mend in said.mend
    assert "`listen`" in said.mend


def test_an_unknown_code_is_a_defect_at_once() -> None:
    with pytest.raises(KeyError):
        TowerError("TWR999", "x")


def test_what_kubectl_makes_of_a_401_is_found_under_its_cause() -> None:
    """kubectl drops the message of a 401, so the words it says instead must lead on."""
    assert "You must be logged in to the server" in fault("TWR305").meaning


def test_a_mend_names_the_cluster_where_it_is_known() -> None:
    assert fault("TWR209").mend_for("edge-1").endswith("`towerctl create token edge-1` and join again")
    error = TowerError("TWR206", "used up").about("edge-1")
    assert error.mend.endswith("`towerctl create token edge-1`")
    assert TowerError("TWR206", "used up").about("").mend == fault("TWR206").mend
