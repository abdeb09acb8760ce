"""What holds for every test of every room: it leaves nothing behind, and with REQUIRE_ALL=1 it may not skip itself."""

from __future__ import annotations

pytest_plugins = ["tests.lab.leaks", "tests.lab.required", "pytester"]
