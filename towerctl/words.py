"""How this program was called, since its help and hints name it: `towerctl`, or `kubectl tower` as a plugin."""

from __future__ import annotations

import os
import sys
from typing import Final


def _called_as() -> str:
    return "kubectl tower" if os.path.basename(sys.argv[0]).startswith("kubectl") else "towerctl"


PROGRAM: Final = _called_as()
