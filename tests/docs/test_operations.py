"""docs/OPERATIONS.md against the code: defaults, configuration keys, commands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from daemon.faults import FAULTS
from protocol import defaults
from tower_agent.config import AgentConfig
from tower_server.config import ServerConfig

TEXT = (Path(__file__).parents[2] / "docs" / "OPERATIONS.md").read_text()
UNITS = {"": 1, "s": 1, "min": 60, "h": 3600, "d": 86400, "KiB": 1024, "MiB": 1024 * 1024}
ROWS = re.findall(r"^\| `([A-Z_]+)` \| (.+?) \| .+ \|$", TEXT, re.MULTILINE)
BASES = {"KIB", "MIB"}  # units for writing the others


def value_of(text: str) -> Any:
    """A cell of the table as the number or text that it stands for, in seconds and bytes."""
    if text.startswith("`"):
        return text.strip("`")
    if found := re.fullmatch(r"(\d+)-(\d+)", text):
        return int(found[1]), int(found[2])
    if found := re.fullmatch(r"(\d+)/(\d+)", text):
        return int(found[1]) / int(found[2])
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", text)
    assert found, f"{text!r} is not a value of the table"
    return float(found[1]) * UNITS[found[2]]


def in_base_units(name: str) -> Any:
    value = getattr(defaults, name)
    factor = 86400 if name.endswith("_DAYS") else 3600 if name.endswith("_HOURS") else 1
    return value * factor if isinstance(value, (int, float)) else value


def names() -> list[str]:
    return [name for name in vars(defaults) if name.isupper() and name not in BASES]


@pytest.mark.parametrize(("name", "text"), ROWS, ids=lambda cell: cell if cell.isupper() else "")
def test_each_row_says_what_the_code_says(name: str, text: str) -> None:
    assert value_of(text) == in_base_units(name)


def test_every_default_has_its_row() -> None:
    missing = sorted(set(names()) - {name for name, _ in ROWS})
    assert not missing, f"docs/OPERATIONS.md, Defaults: add a row for {', '.join(missing)}"


def keys_of(heading: str) -> list[str]:
    """The keys in the first column of the first table after a heading."""
    table = TEXT.partition(heading)[2].partition("| key |")[2].partition("\n\n")[0]
    found = [key for row in table.splitlines()[2:] for key in re.findall(r"`([a-z0-9_.]+)[`:]", row.split("|")[1])]
    assert found
    return found


def has_key(model: type[BaseModel], key: str) -> bool:
    head, _, rest = key.partition(".")
    field = model.model_fields.get(head)
    if field is None:
        return False
    inner = field.annotation
    return not rest or (has_key(inner, rest) if isinstance(inner, type) and issubclass(inner, BaseModel) else True)


@pytest.mark.parametrize(("heading", "model"), [("## The server", ServerConfig), ("### The agent's", AgentConfig)])
def test_every_key_that_is_described_exists(heading: str, model: type[BaseModel]) -> None:
    assert [key for key in keys_of(heading) if not has_key(model, key)] == []


def keys_in(model: type[BaseModel], above: str = "") -> list[str]:
    """Every key that a file may hold, sections opened."""
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        section = isinstance(inner, type) and issubclass(inner, BaseModel)
        found += keys_in(inner, f"{above}{name}.") if section else [f"{above}{name}"]
    return found


@pytest.mark.parametrize(("heading", "model"), [("## The server", ServerConfig), ("### The agent's", AgentConfig)])
def test_every_key_that_exists_is_described(heading: str, model: type[BaseModel]) -> None:
    assert [key for key in keys_in(model) if key not in keys_of(heading)] == []


def test_every_code_that_is_named_exists() -> None:
    assert set(re.findall(r"TWR\d{3}", TEXT)) <= set(FAULTS)
