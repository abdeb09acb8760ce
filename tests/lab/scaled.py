"""Runs a program of the product with its idle limits divided: `python -m tests.lab.scaled FACTOR PROGRAM ARGUMENT ...`

A test of hours of silence would take hours. The limits are constants, so they are changed before anything reads them;
everything else about the process is as it is.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from protocol import defaults

IDLE_LIMITS = ("PING_INTERVAL", "DEAD_AFTER", "UPSTREAM_IDLE", "CALLER_IDLE")


def longest(factor: float) -> float:
    """The longest of the limits after the division, in seconds."""
    return max(float(getattr(defaults, name)) for name in IDLE_LIMITS) / factor


def main() -> None:
    factor, program = float(sys.argv[1]), sys.argv[2]
    for name in IDLE_LIMITS:
        setattr(defaults, name, getattr(defaults, name) / factor)
    sys.argv = sys.argv[2:]
    module: Any = importlib.import_module(f"{program.replace('-', '_')}.main")
    module.main()


if __name__ == "__main__":
    main()
