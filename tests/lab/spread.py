"""With several workers, the tests of a program that a whole run shares stay with one of them: else each starts it anew.

A plugin for pytest. Each worker begins with an equal share of the list, front to back, and whoever is done takes from
the end of another's (`--dist worksteal`). So those tests stand at the beginning of a share, each program's at another.
"""

from __future__ import annotations

import pytest

PROGRAMS = ("world", "tower")  # fixtures: the towers of tests/loopback and tests/towerctl
WIDE = ("session", "package")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if workers > 1:
        items[:] = spread(items, workers)


def spread(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """The same tests, those of the first program at the front, those of the next one at the second worker's."""
    shared: dict[str, list[pytest.Item]] = {name: [] for name in PROGRAMS}
    rest = []
    for item in items:
        shared.get(_program(item), rest).append(item)
    share = len(items) // workers
    for number, group in enumerate(shared.values()):
        rest[number * share : number * share] = group
    return rest


def _program(item: pytest.Item) -> str:
    """The fixture of `PROGRAMS` that `item` uses, directly or not, or an empty string."""
    info = getattr(item, "_fixtureinfo", None)
    for name in PROGRAMS:
        if info is not None and any(each.scope in WIDE for each in info.name2fixturedefs.get(name, ())):
            return name
    return ""
