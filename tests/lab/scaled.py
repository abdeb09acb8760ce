"""Runs a program of the product with other constants: `python -m tests.lab.scaled '{"PING_INTERVAL": 0.5}' PROGRAM ...`

A test of hours of silence, or of a certificate's whole life, would take as long. The limits are constants, so they are
changed before anything reads them; everything else about the process is as it is.
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
    for name, value in changes.items():
        if not hasattr(defaults, name):
            raise SystemExit(f"protocol.defaults has no {name}")
        setattr(defaults, name, value)
    sys.argv = sys.argv[2:]
    module: Any = importlib.import_module(f"{program.replace('-', '_')}.main")
    module.main()


if __name__ == "__main__":
    main()
