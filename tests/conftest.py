"""What holds for every test of every room: it leaves nothing behind, and with REQUIRE_ALL=1 it may not skip itself."""

from __future__ import annotations

import signal
import sys

# The import linter brings it along, no environment of the product has it: structlog would draw each traceback with it,
# which takes half a second.
sys.modules["rich"] = None  # type: ignore[assignment]

from tests.lab import examples as examples  # noqa: E402  (the profiles exist before --hypothesis-profile chooses one)

# A shell that runs its commands in the background has them ignore Ctrl-C, and children inherit that: tests send it to
# programs that rely on what a terminal gives them.
signal.signal(signal.SIGINT, signal.default_int_handler)

LAB = ("heap", "hostplane", "leaks", "reports", "required")
pytest_plugins = [*(f"tests.lab.{name}" for name in LAB), "pytester"]
