"""The version is that of the distribution."""

from __future__ import annotations

import importlib.metadata

from tower_agent.version import product_version


def test_it_is_what_is_installed() -> None:
    assert product_version() == importlib.metadata.version("tower-tunnel")
