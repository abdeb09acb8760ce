"""Runs a program of the product with other constants: `python -m tests.lab.scaled '{"PING_INTERVAL": 0.5}' PROGRAM ...`

A test of hours of silence, or of a certificate's whole life, would take as long. The limits are constants, so they are
changed before anything reads them (names with dots are those of other modules than `protocol.defaults`); everything
else about the process is as it is.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from protocol import defaults

IDLE_LIMITS = ("PING_INTERVAL", "DEAD_AFTER", "UPSTREAM_IDLE", "CALLER_IDLE")


def idle_limits(divided_by: float) -> dict[str, float]:
    """The limits of silence, all shorter by the same factor."""
    return {name: float(getattr(defaults, name)) / divided_by for name in IDLE_LIMITS}


def longest(factor: float) -> float:
    """The longest of the limits after the division, in seconds."""
    return max(idle_limits(factor).values())


def main() -> None:
    changes, program = json.loads(sys.argv[1]), sys.argv[2]
    for path, value in changes.items():  # in order: what a module makes of the defaults is fixed when it is imported
        where, _, name = path.rpartition(".")
        place: Any = importlib.import_module(where) if where else defaults
        if not hasattr(place, name):
            raise SystemExit(f"{place.__name__} has no {name}")
        setattr(place, name, value)
    sys.argv = sys.argv[2:]
    module: Any = importlib.import_module(f"{program.replace('-', '_')}.main")
    module.main()


if __name__ == "__main__":
    main()
