"""What docs/ARCHITECTURE.md names is there: modules, and the names in them; and what it calls pure is held so."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = "protocol|certs|gateway|daemon|tower_server|tower_agent|towerctl|tests"
NAMED = re.findall(rf"`((?:{ROOMS})(?:\.\w+)+)", (ROOT / "docs/ARCHITECTURE.md").read_text())


def missing(name: str) -> bool:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:end])
        if place.is_dir():
            return end < len(parts)
        if (file := place.with_suffix(".py")).is_file():
            text = file.read_text()
            return not all(re.search(rf"\b{part}\b", text) for part in parts[end:])
    return True


def test_every_module_and_name_that_is_named_in_full_exists():
    assert len(NAMED) > 60
    assert [name for name in NAMED if missing(name)] == []
    assert missing("protocol.nothing")
    assert missing("protocol.session.Nothing")


def test_every_module_of_the_pure_room_is_under_the_contract_that_holds_it_so():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (pure,) = [contract for contract in contracts if contract["type"] == "forbidden"]
    modules = {f"protocol.{file.stem}" for file in (ROOT / "protocol").glob("*.py") if file.stem != "__init__"}
    assert set(pure["source_modules"]) == modules
