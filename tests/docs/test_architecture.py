"""What docs/ARCHITECTURE.md names is there: modules, and the names in them."""

import re
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
